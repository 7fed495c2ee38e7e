"""Style of all figures: dark ink on white paper, which a page shows as it is in light and in dark."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl

INK, GREY, ORANGE, BLUE = "#1c1e21", "#767d86", "#b45309", "#0b62a8"
"""Distinct for the colour-blind, and in print."""

_STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": GREY,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "grid.alpha": 0.3,
    "hatch.linewidth": 0.8,
    "svg.fonttype": "none",
    "svg.hashsalt": "torch-pruning-mope",
    "text.parse_math": False,  # labels come from outside
}


@contextmanager
def drawing() -> Iterator[None]:
    """Figures made and saved inside have this style, whatever the user's own settings are."""
    with mpl.rc_context(), warnings.catch_warnings():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        # Words in scripts that the PNG's font lacks; the SVG has them as text.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield
