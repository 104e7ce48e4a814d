"""For the tests of pictures: what is drawn, as objects of matplotlib, and that a picture shows something."""

import contextlib
import io
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
from PIL import Image

from ghn_jax.reporting import plotting


@contextlib.contextmanager
def drawn() -> Iterator[list[Any]]:
    """The figures that are encoded meanwhile, in order; they can be looked at though they are closed."""
    figures: list[Any] = []
    encoded = plotting.encoded

    def keep(figure: Any, *args: Any, **options: Any) -> bytes:
        figures.append(figure)
        return encoded(figure, *args, **options)

    with mock.patch.object(plotting, 'encoded', keep):
        yield figures


def check_picture(content: bytes, *, width: tuple[int, int] = (400, 3000)) -> None:
    """A PNG of a size to be read, with marks of several colours on a ground that is mostly of one."""
    with Image.open(io.BytesIO(content)) as picture:
        assert picture.format == 'PNG'
        picture.load()  # all of it can be decoded
        assert width[0] <= picture.width <= width[1] and picture.height >= 150, picture.size
        pixels = np.asarray(picture.convert('RGB')).reshape(-1, 3)
    colours, counts = np.unique(pixels // 16, axis=0, return_counts=True)
    assert len(colours) >= 8, 'blank, or nearly'
    assert 0.005 < 1 - counts.max() / len(pixels) < 0.9


def lengths_of_bars(panel: Any) -> list[float]:
    """Of horizontal bars, in the order in which they were drawn."""
    return [bar.get_width() for bars in panel.containers for bar in bars]


def texts(figure: Any) -> list[str]:
    """All words in a figure: titles, labels, legends."""
    from matplotlib.text import Text

    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]
