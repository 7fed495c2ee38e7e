"""Figures of a report besides the heat maps, and the style of all: dark ink on white, as a page shows it in light and dark."""

import math
import statistics
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..distillation import TrainingStep
from ..planning import LayerPlan
from ._read import Evaluation, labels
from ._text import clean, percent

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
_BARS = {"dense": (GREY, ""), "pruned": (ORANGE, "////"), "reconstructed": (ORANGE, ""), "distilled": (BLUE, "")}
_DIRECTIONS = {"i2t": "image → text", "t2i": "text → image"}


@contextmanager
def drawing() -> Iterator[None]:
    """Figures made and saved inside have this style, whatever the user's own settings are."""
    with mpl.rc_context(), warnings.catch_warnings():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        # Words in scripts that the PNG's font lacks; the SVG has them as text.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def draw_recalls(rows: Sequence[Evaluation]) -> Figure:
    """R@1 of each model as a bar, R@5 and R@10 as marks; stages differ in colour and hatching."""
    ways = [way for way in _DIRECTIONS if any(row.get(f"{way}_r1") is not None for row in rows)]
    figure = Figure(figsize=(5.2, len(ways) * (0.6 + 0.27 * len(rows)) + 0.3), layout="constrained")
    names = [name if len(name) <= 32 else name[:31] + "…" for name in labels(rows)]
    for axes, way in zip(figure.subplots(len(ways), 1, squeeze=False, sharex=True)[:, 0], ways, strict=True):
        for place, row in enumerate(rows):
            value, (colour, hatch) = row.get(f"{way}_r1"), _BARS.get(row.stage, (GREY, "...."))
            face = "none" if hatch else colour
            axes.barh([place], [value or 0], 0.66, facecolor=face, edgecolor=colour, hatch=hatch)
            axes.text(104.0, place, "—" if value is None else percent(value), va="center")
        for cut, marker in ((5, "|"), (10, "d")):
            points = [row.get(f"{way}_r{cut}") for row in rows]
            axes.plot([math.nan if x is None else x for x in points], range(len(rows)), marker, color=INK, markersize=6)
        _rows(axes, names)
        axes.set_xlim(0, 118)
        axes.set_xticks(range(0, 101, 20))
        axes.grid(axis="x")
        axes.set_title(_DIRECTIONS[way])
        axes.set_xlabel("recall, percent")
    return figure


def _rows(axes: Axes, names: Sequence[str]) -> None:
    """A row of bars each, from above."""
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", length=0)


def draw_curves(steps: Sequence[TrainingStep]) -> Figure:
    """The loss, each of its terms and the learning rate over steps, each on its own scale."""
    panels = {"loss": [step.loss for step in steps]}
    for term in dict.fromkeys(name for step in steps for name in step.terms):
        panels[f"term: {clean(term)}"] = [step.terms.get(term, math.nan) for step in steps]
    panels["learning rate"] = [step.learning_rate for step in steps]
    # Where training began again, or resumed at an earlier checkpoint, another line begins.
    starts = [0, *(k for k, (a, b) in enumerate(pairwise(steps), 1) if b.step <= a.step), len(steps)]
    rows = -(-len(panels) // 2)
    figure = Figure(figsize=(6.6, 0.4 + 1.7 * rows), layout="constrained")
    grid = list(figure.subplots(rows, 2, squeeze=False).flat)
    for axes, (title, values) in zip(grid, panels.items(), strict=False):
        for start, end in pairwise(starts):
            numbers, own = [step.step for step in steps[start:end]], values[start:end]
            half, chosen = len(own) // 40, range(0, len(own), 1 + len(own) // 400)
            medians = [statistics.median(own[max(0, k - half) : k + half + 1]) for k in chosen]
            axes.plot(numbers, own, color=GREY, linewidth=0.8, alpha=0.6)
            axes.plot([numbers[k] for k in chosen], medians, color=BLUE, marker="o" if len(own) == 1 else "")
        axes.set_title(title)
        axes.set_xlabel("step")
        axes.grid(axis="y")
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    return figure


def draw_kept(layers: Sequence[LayerPlan]) -> Figure:
    """Heads and neurons that are left of each layer of one tower."""
    figure = Figure(figsize=(6.6, 0.9 + 0.3 * len(layers)), layout="constrained")
    panels = {
        "heads": [(layer.heads, layer.heads_kept) for layer in layers],
        "FFN neurons": [(layer.neurons, layer.neurons_kept) for layer in layers],
    }
    for axes, (title, rows) in zip(figure.subplots(1, 2, sharey=True), panels.items(), strict=True):
        most = max(1, *(total for total, _ in rows))
        axes.barh(range(len(rows)), [total for total, _ in rows], 0.62, facecolor="none", edgecolor=GREY)
        axes.barh(range(len(rows)), [kept for _, kept in rows], 0.62, color=BLUE)
        for row, (total, kept) in enumerate(rows):
            axes.text(1.03 * most, row, f"{kept} of {total}", va="center")
        _rows(axes, [f"layer {layer.layer}{' (gone)' if layer.removed else ''}" for layer in layers])
        axes.set_title(title)
        axes.set_xlim(0, 1.5 * most)
        axes.set_xticks([])
        axes.spines[:].set_visible(False)
    return figure
