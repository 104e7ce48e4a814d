"""Lists the hypernetworks that come with the package, shows the card of one, or makes one of a run.

python -m ghn_jax.zoo
python -m ghn_jax.zoo --name=digits-bits
python -m ghn_jax.zoo --add=DIR --name=digits-bits --about='...' --commit=1ad11cb --limit='One seed.'
python -m ghn_jax.evaluate --workdir=zoo:digits-bits --against=DIR --json=FILE.json   then --add with --result

`zoo:digits-bits` stands in the place of a run directory wherever one is read. An entry is made twice: its
scores are those of the file that is shipped, and the difference to the run says what its dtype costs.
"""

import pathlib

from absl import flags

from ghn_jax.base import cli, files, paths
from ghn_jax.base.errors import FieldError, UserError
from ghn_jax.base.jsonlines import read_jsonl
from ghn_jax.evaluation.results import read_result
from ghn_jax.runs import zoo
from ghn_jax.runs.run import load_run
from ghn_jax.zoo.cards import listed, make_card, text

_NAME = flags.DEFINE_string(
    'name', None, 'Show the card of this hypernetwork, or make it with --add. Default: list all.'
)
_ADD = flags.DEFINE_string(
    'add', None, 'Make the entry --name of this run directory, in the place of the one there is.'
)
_STEP = flags.DEFINE_string(
    'step', 'latest', 'For --add: checkpoint to take, latest, best (in validation), or its step.'
)
_DTYPE = flags.DEFINE_enum(
    'dtype', 'float16', zoo.DTYPES, 'For --add: type that the parameters are stored in.'
)
_ABOUT = flags.DEFINE_string('about', None, 'For --add: what the hypernetwork is for, in a sentence.')
_COMMIT = flags.DEFINE_string('commit', None, 'For --add: commit of the code that trained it.')
_LIMIT = flags.DEFINE_multi_string(
    'limit', [], 'For --add: what it does not do, in a sentence; may be repeated.'
)
_RESULT = flags.DEFINE_string('result', None, 'For --add: the --json file of its evaluation.')
_FOLDER = flags.DEFINE_string('folder', str(zoo.FOLDER), 'Folder that the entries lie in.')


def main() -> None:
    """Run the command."""
    folder = paths.local(_FOLDER.value or '', 'folder')
    for name in ('about', 'commit', 'limit', 'result', 'step', 'dtype'):
        if _ADD.value is None and flags.FLAGS[name].present:
            raise UserError(f'--{name} is for an entry that is made: give --add=DIR')
    if _ADD.value is not None:
        _add(folder)
    if _NAME.value is not None:
        print(text(zoo.read_card(_NAME.value, folder)))
    elif not (names := zoo.names(folder)):
        raise FieldError('folder', f'={_FOLDER.value} holds no entries: give a folder that --add has filled')
    else:
        print(listed([zoo.read_card(name, folder) for name in names]))


def _add(folder: pathlib.Path) -> None:
    given = {'name': _NAME.value, 'about': _ABOUT.value, 'commit': _COMMIT.value, 'limit': _LIMIT.value}
    for name, value in given.items():
        if not value:
            raise UserError(f'--{name} is missing: an entry of the zoo has one')
    cli.check_folder(folder, 'folder')
    workdir = cli.check_workdir(_ADD.value, must_exist=True)
    run, metrics = load_run(workdir, _STEP.value or ''), workdir / 'metrics.jsonl'
    card = make_card(
        run,
        about=_ABOUT.value or '',
        commit=_COMMIT.value or '',
        limits=_LIMIT.value,
        metrics=[row for row in read_jsonl(metrics) if row['step'] <= run.step]
        if files.is_file(metrics)
        else (),
        result=read_result(_RESULT.value) if _RESULT.value else None,
    )
    meta = {key: value for key, value in run.meta.items() if key != 'window'}
    zoo.write_entry(_NAME.value or '', run.params, meta, card, dtype=_DTYPE.value or '', folder=folder)


if __name__ == '__main__':
    cli.run(main, {'workdir': 'add'})
