"""Where the result of a command goes: to the screen as a table, to files as JSON and as a picture."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

from ghn_jax.base import cli, files, screen
from ghn_jax.base.errors import FieldError
from ghn_jax.base.paths import Place

flags.disclaim_key_flags()  # --help shows them as the flags of the command that defines them


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutputFiles:
    """The files to write, None for none. They can be written, as far as can be told before."""

    json: Place | None
    plot: Place | None

    @property
    def partial(self) -> pathlib.Path | None:
        """The file beside `json` for what is done of a result; None where that is no file on a disk."""
        return partial_file(self.json) if self.json else None

    def write(
        self, result: Any, *, table: Callable[[Any], str], picture: Callable[..., bytes] | None = None
    ) -> None:
        """Write the files that were asked for, then show the table, also where a file cannot be written.

        table: the result as text.   picture: `picture(result, suffix=...)`, the result drawn, where
        there are pictures.

        Raises:
          UserError: a file that cannot be written; a screen that cannot, where there is no JSON file.
        """
        try:
            if self.json:
                files.write_json(self.json, result)
            if self.plot and picture:
                files.write(self.plot, picture(result, suffix=self.plot.suffix))
        finally:
            screen.show(table(result), kept=bool(self.json))
        if self.plot:
            print(f'picture: {self.plot}')


def partial_file(path: Place) -> pathlib.Path | None:
    """Return the file beside `path` for what is done of it; None where that is no file on a disk."""
    target = files.destination(path)
    return target and target.with_name(f'{target.name}.partial')


def define_flags(pictures: Sequence[str] = ()) -> Callable[[], OutputFiles]:
    """Define --json and --plot; return what reads and checks them once they are parsed (FieldError).

    pictures: what the name of a picture may end in; () is for a command that draws none and has no --plot.
    """
    json = flags.DEFINE_string('json', None, 'Write the result to this file, as JSON.')
    plot = None
    if pictures:
        plot = flags.DEFINE_string(
            'plot', None, f'Draw the result into this file, whose name ends in {", ".join(pictures)}.'
        )

    def read() -> OutputFiles:
        result = cli.check_output(json.value, 'json') if json.value else None
        if plot is None or not plot.value:
            return OutputFiles(json=result, plot=None)
        drawn = cli.check_output(plot.value, 'plot', pictures)
        if drawn == result:
            raise FieldError('plot', f'={plot.value}: the result of --json is to be there: give another file')
        return OutputFiles(json=result, plot=drawn)

    return read
