"""Scores as heat maps: layer by head, layer by neuron group, and whole layers, for each tower."""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ..scoring import Score, ScoreTable
from ._figures import drawing
from ._text import clean, short_number, signed

KINDS = {
    "head": "attention heads",
    "neurons": "FFN neuron groups",
    "attention": "whole attentions",
    "mlp": "whole MLPs",
    "block": "whole layers",
}
"""Kinds of units in the order of the panels."""
_COLUMNS = {"head": "head", "neurons": "neuron group, least important first"}
_MAP = "PuOr_r"
"""Diverging and distinct for the colour-blind: orange scores above 0, purple below."""
_WIDEST = 64
"""Columns of a panel whose cells still hold numbers."""


def heat_maps(table: ScoreTable, path: str | Path | None = None) -> Figure:
    """Draws all scores, in hundredths of the metric; cells within two standard errors of 0 are hatched."""
    # Colours are linear up to the typical standard error of a score and logarithmic beyond, and alike for both towers.
    with drawing():
        figure = draw_heat_maps(table)
        dense = signed(f"{table.dense:.3f}")
        figure.suptitle(f"MoPE scores ± standard error; {clean(table.metric)} of the dense model: {dense}")
        if path is not None:
            figure.savefig(path, dpi=150)
    return figure


def draw_heat_maps(
    table: ScoreTable, towers: Sequence[str] | None = None, kinds: Sequence[str] = tuple(KINDS)
) -> Figure:
    """Heat maps of some towers and kinds, without a title; raises ValueError if the table holds no such scores."""
    there = list(dict.fromkeys(s.unit.tower for s in table.scores if towers is None or s.unit.tower in towers))
    kinds = [kind for kind in kinds if any(table.of(kind, tower) for tower in there)]
    if not kinds:
        raise ValueError(f"table must hold scores of units of {towers or 'image or text'}; found none.")
    widest = [max(score.unit.index for score in table.of(kind)) + 1 for kind in kinds]
    deepest = [1 + max(score.unit.layer for kind in kinds for score in table.of(kind, tower)) for tower in there]
    ratios = [max(min(columns, _WIDEST), 2.6) for columns in widest]
    width = 0.8 + 0.7 * len(kinds) + 0.62 * sum(ratios)
    figure = Figure(figsize=(max(width, 4.6), 1.9 + 0.55 * sum(deepest)), dpi=150, layout="constrained")
    grid = figure.subplots(
        len(there), len(kinds), squeeze=False, gridspec_kw={"width_ratios": ratios, "height_ratios": deepest}
    )
    for column, (kind, columns) in enumerate(zip(kinds, widest, strict=True)):
        norm = score_norm(table.of(kind))
        for row, tower in enumerate(there):
            axes = grid[row, column]
            if scores := table.of(kind, tower):
                _panel(axes, scores, norm)
                axes.set_title(f"{tower} tower:{' ' if columns > 1 else chr(10)}{KINDS[kind]}", loc="center")
            else:
                axes.set_axis_off()
        nested = kind == "neurons" and table.settings.get("interaction") == "nested"
        grid[-1, column].set_xlabel(_COLUMNS.get(kind, "") + (" (share of the nested loss)" if nested else ""))
        if columns > 1:  # (a panel of one column has no room for a bar)
            _bar(figure, list(grid[:, column]), norm, min(columns, _WIDEST), score_label(table))
    return figure


def _bar(figure: Figure, axes: list[Axes], norm: SymLogNorm, columns: int, label: str) -> None:
    bar = figure.colorbar(ScalarMappable(norm, _MAP), ax=axes, location="bottom", aspect=5 * columns, pad=0.02)
    bar.set_label(label, fontsize=9)
    bar.ax.tick_params(labelsize=8)
    bar.ax.minorticks_off()
    bar.set_ticks(score_ticks(norm), labels=[signed(f"{tick:g}") for tick in score_ticks(norm)])


def score_label(table: ScoreTable) -> str:
    """A score in words, with its unit."""
    if table.metric == "contrastive_loss":
        return "score: rise of the contrastive loss, in 0.01 nats"
    return f"score: drop in points of {clean(table.metric)}"


def score_norm(scores: Sequence[Score]) -> SymLogNorm:
    """Colours of one kind of unit: 0 in the middle, the largest score at an end."""
    errors = [100 * score.stderr for score in scores if math.isfinite(score.stderr)]
    largest = max(100 * abs(score.value) for score in scores) or 1.0
    linear = min(statistics.median(errors) if errors else largest / 100, largest / 10) or largest / 100
    return SymLogNorm(linthresh=linear, vmin=-largest, vmax=largest)


def score_ticks(norm: SymLogNorm) -> list[float]:
    """0 and the powers of ten between the linear part and the ends."""
    low, high = math.ceil(math.log10(norm.linthresh)), math.floor(math.log10(norm.vmax or 1.0))
    powers = [10.0**power for power in range(low, high + 1)]
    return [*(-power for power in reversed(powers)), 0.0, *powers]


def _panel(axes: Axes, scores: Sequence[Score], norm: SymLogNorm) -> None:
    """One tower's scores of one kind, each cell with its number and, in small, its standard error."""
    rows, columns = (1 + max(getattr(score.unit, name) for score in scores) for name in ("layer", "index"))
    values = np.full((rows, columns), np.nan)
    for score in scores:
        values[score.unit.layer, score.unit.index] = 100 * score.value
    small = columns <= _WIDEST
    edges = {"edgecolors": "white", "linewidth": 1.5} if small else {"rasterized": True}
    corners = (np.arange(count + 1) - 0.5 for count in (columns, rows))
    mesh = axes.pcolormesh(*corners, values, cmap=_MAP, norm=norm, **edges)
    axes.invert_yaxis()
    axes.set_ylabel("layer")
    axes.set_yticks(range(rows))
    axes.set_xticks(range(columns) if 1 < columns <= _WIDEST else [])
    axes.tick_params(which="both", length=0, labelsize=8)
    axes.spines[:].set_visible(False)
    for score in scores if small else ():
        red, green, blue, _ = mesh.get_cmap()(float(norm(100 * score.value)))
        _cell(axes, score, "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white")


def _cell(axes: Axes, score: Score, colour: str) -> None:
    x, y = score.unit.index, score.unit.layer
    if math.isfinite(score.stderr) and abs(score.value) <= 2 * score.stderr:
        axes.add_patch(
            Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, hatch="///", edgecolor=colour, linewidth=0, alpha=0.35)
        )
    axes.text(x, y - 0.12, short_number(100 * score.value), ha="center", va="center", fontsize=8, color=colour)
    if math.isfinite(score.stderr):
        error = f"±{short_number(100 * score.stderr)}"
        axes.text(x, y + 0.26, error, ha="center", va="center", fontsize=6, color=colour)
