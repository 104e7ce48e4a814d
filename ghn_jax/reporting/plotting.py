"""Figures drawn by matplotlib, which takes a second to import: it is imported where a figure is drawn."""

import io
from typing import Any


def pyplot() -> Any:
    """matplotlib.pyplot, for files and no screen; text is shown as it is, for names may have dollars."""
    import matplotlib

    matplotlib.use('Agg')
    matplotlib.rcParams['text.parse_math'] = False
    from matplotlib import pyplot as plt

    return plt


def encoded(fig: Any, suffix: str = '.png', *, dpi: int = 130) -> bytes:
    """A figure as the content of a file with this suffix; the figure is closed."""
    out = io.BytesIO()
    try:
        fig.savefig(out, format=suffix.removeprefix('.'), dpi=dpi)
    finally:
        pyplot().close(fig)
    return out.getvalue()
