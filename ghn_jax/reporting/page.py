"""A page of sections with tables and figures: HTML that needs nothing else, and the figures as files."""

import base64
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import jinja2

from ghn_jax.base import files
from ghn_jax.base.paths import Place

INDEX = 'index.html'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figure:
    """A picture.

    Attributes:
      name: of its file, without suffix.
      png: the contents of that file.
      alt: what it shows.
      caption: how to read it.
    """

    name: str
    png: bytes
    alt: str
    caption: str

    @property
    def uri(self) -> str:
        """The picture itself, where a page would have its address."""
        return 'data:image/png;base64,' + base64.b64encode(self.png).decode()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """A table.

    Attributes:
      caption: read before the table.
      headers: of the columns.
      lines: as many cells each as there are headers, shown by str().
    """

    caption: str
    headers: Sequence[str]
    lines: Sequence[Sequence[Any]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
    """A title, then paragraphs, tables, code and figures, in this order."""

    title: str
    paragraphs: Sequence[str] = ()
    tables: Sequence[Table] = ()
    code: Sequence[str] = ()
    figures: Sequence[Figure] = ()

    @property
    def is_narrow(self) -> bool:
        """Whether it has room beside another one on a wide page."""
        return len(self.figures) < 2 and not self.tables


def render(title: str, lead: str, sections: Sequence[Section]) -> str:
    """Return the HTML of a page. All text is escaped: names in it may be anybody's."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader('ghn_jax.reporting'),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template('page.html').render(title=title, lead=lead, sections=sections)


def write(folder: Place, html: str, figures: Iterable[Figure], names: Iterable[str] = ()) -> Place:
    """Write the figures, then the page that has them too, each file whole; return the path of the page.

    names: of all figures that a page may have; those that this one has not are removed, for they are older.

    Raises:
      UserError: the folder cannot be made or written.
    """
    pngs = {figure.name: figure.png for figure in figures}
    with files.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name, png in pngs.items():
            files.write(folder / f'{name}.png', png)
        files.write(folder / INDEX, html)
        for name in set(names) - set(pngs):
            (folder / f'{name}.png').unlink(missing_ok=True)
    return folder / INDEX
