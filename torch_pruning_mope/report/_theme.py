"""How figures look: one palette, told apart by the colour-blind, in print and in the dark.

Figures are drawn in the light palette. In the page, each of its colours becomes a CSS variable of the same name, to which the
style sheet gives another value in the dark.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl

INK = "#1c1e21"
MUTED = "#5b6168"
PAGE = "#fdfdfe"
GREY = "#767d86"
ORANGE = "#b45309"
BLUE = "#0b62a8"
PALETTE = {"ink": INK, "muted": MUTED, "page": PAGE, "grey": GREY, "orange": ORANGE, "blue": BLUE}
"""Colours by the names of their CSS variables."""

_STYLE: dict[Any, Any] = {
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "figure.facecolor": PAGE,
    "font.size": 10,
    "grid.color": MUTED,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.6,
    "hatch.linewidth": 0.8,
    "svg.fonttype": "none",
    "svg.hashsalt": "torch-pruning-mope",
    "text.color": INK,
    "text.parse_math": False,  # labels come from outside
    "xtick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
}


@contextmanager
def drawing() -> Iterator[None]:
    """Figures made and saved within are in our style, whatever the user's own settings are.

    Yields:
        Nothing.
    """
    with mpl.rc_context(), warnings.catch_warnings():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        # Words in scripts that the PNG's font lacks; the SVG has them as text.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield
