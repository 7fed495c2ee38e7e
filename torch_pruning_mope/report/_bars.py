"""Bars of what models take and how well they retrieve."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ._evaluation import Evaluation, labels
from ._format import MEASURES
from ._theme import BLUE, GREY, INK, ORANGE

_STAGES = {"dense": (GREY, ""), "pruned": (ORANGE, "////"), "distilled": (BLUE, "")}
_DIRECTIONS = {"i2t": "image → text", "t2i": "text → image"}


def draw_sizes(rows: Sequence[Evaluation]) -> Figure:
    """Parameters, multiply-adds and latency of each model that has them, as shares of the first row's.

    Args:
        rows: The rows, the dense model first.

    Returns:
        The figure.
    """
    measures = [measure for measure in MEASURES if any(measure.of(row) is not None for row in rows)]
    figure, grid = _panels(len(measures), len(rows))
    for axes, measure in zip(grid, measures, strict=True):
        values = [measure.of(row) for row in rows]
        most = max(value for value in values if value is not None) or 1
        _bars(axes, rows, [None if value is None else value / most for value in values])
        for place, value in enumerate(values):
            axes.text(1.03, place, "—" if value is None else measure.show(value), va="center", color=INK)
        axes.set_xlim(0, 1.35)
        axes.set_xticks([])
        axes.set_title(measure.name)
    return figure


def draw_recalls(rows: Sequence[Evaluation]) -> Figure:
    """R@1 of each model as a bar, R@5 and R@10 as marks on its line.

    Args:
        rows: The rows.

    Returns:
        The figure.
    """
    ways = [way for way in _DIRECTIONS if any(name.startswith(way) for row in rows for name in row.recalls)]
    figure, grid = _panels(len(ways), len(rows))
    for axes, way in zip(grid, ways, strict=True):
        values = [row.recalls.get(f"{way}_r1") for row in rows]
        _bars(axes, rows, values)
        for place, (row, value) in enumerate(zip(rows, values, strict=True)):
            for cut, marker in ((5, "|"), (10, "d")):
                if (found := row.recalls.get(f"{way}_r{cut}")) is not None:
                    axes.plot([found], [place], marker, color=INK, markersize=9 if cut == 5 else 4, clip_on=False)
            axes.text(104, place, "—" if value is None else f"{value:.1f}", va="center", color=INK)
        axes.set_xlim(0, 118)
        axes.set_xticks(range(0, 101, 20))
        axes.grid(axis="x")
        axes.set_title(_DIRECTIONS[way])
    if len(grid):
        grid[-1].set_xlabel("recall, percent")
    return figure


def _panels(count: int, rows: int) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(5.2, count * (0.55 + 0.27 * rows) + 0.3), layout="constrained")
    return figure, list(figure.subplots(count, 1, squeeze=False, sharex=True)[:, 0])


def _bars(axes: Axes, rows: Sequence[Evaluation], values: Sequence[int | float | None]) -> None:
    """A bar per row, as far as there are values; stages differ in colour and hatching."""
    for place, (row, value) in enumerate(zip(rows, values, strict=True)):
        colour, hatch = _STAGES.get(row.stage, (GREY, "...."))
        face = "none" if hatch else colour
        axes.barh([place], [value or 0.0], 0.66, facecolor=face, edgecolor=colour, hatch=hatch, linewidth=1)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), [name if len(name) <= 32 else name[:31] + "…" for name in labels(rows)])
    axes.tick_params(axis="y", length=0)
    axes.spines["bottom"].set_visible(False)
