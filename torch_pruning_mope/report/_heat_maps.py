"""Scores as heat maps: layer by head, layer by neuron group, and whole layers, for each tower."""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, SymLogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ..scoring import Score, ScoreTable
from ._theme import PAGE, drawing

KINDS = {
    "head": "attention heads",
    "neurons": "FFN neuron groups",
    "attention": "whole attentions",
    "mlp": "whole MLPs",
    "block": "whole layers",
}
"""Kinds of units, in the order of the panels, and what they are called."""
_COLUMNS = {"head": "head", "neurons": "neuron group, least important first"}
_MAP = "PuOr_r"
"""Diverging and told apart by the colour-blind: orange is worth keeping, purple is better gone, white is no matter."""
_NARROW = 1
_MOST_NUMBERS = 64
"""Columns of a panel whose cells still hold numbers."""


def heat_maps(table: ScoreTable, path: str | Path | None = None) -> Figure:
    """Draws all scores, in hundredths of the metric; cells within two standard errors of 0 are hatched.

    Colours are linear up to the typical standard error of a score and logarithmic beyond, and alike for both towers.

    Args:
        table: The score table.
        path: Where to save the picture, if anywhere; its suffix is the format.

    Returns:
        The figure.

    Raises:
        ValueError: If the table holds no scores.
    """
    with drawing():
        figure = draw_heat_maps(table)
        dense = signed(f"{table.dense:.3f}")
        figure.suptitle(
            f"MoPE scores ± standard error; with nothing removed, {table.metric} is {dense} (higher is better)"
        )
        if path is not None:
            figure.savefig(path, dpi=150)
    return figure


def draw_heat_maps(
    table: ScoreTable, towers: Sequence[str] | None = None, kinds: Sequence[str] = tuple(KINDS)
) -> Figure:
    """The same without a title above it.

    Args:
        table: The score table.
        towers: Which towers; by default all.
        kinds: Which kinds.

    Returns:
        The figure.

    Raises:
        ValueError: If the table holds no such scores.
    """
    there = list(dict.fromkeys(s.unit.tower for s in table.scores if towers is None or s.unit.tower in towers))
    kinds = [kind for kind in kinds if any(table.of(kind, tower) for tower in there)]
    if not kinds:
        raise ValueError(f"table must hold scores of units of {towers or 'image or text'}; found none.")
    widest = [max(score.unit.index for score in table.of(kind)) + 1 for kind in kinds]
    deepest = [1 + max(score.unit.layer for kind in kinds for score in table.of(kind, tower)) for tower in there]
    ratios = [max(min(columns, _MOST_NUMBERS), 2.6) for columns in widest]
    width = 0.8 + 0.7 * len(kinds) + 0.62 * sum(ratios)
    barred = max(widest) > _NARROW
    size = (max(width, 4.6), 1.9 + 0.55 * sum(deepest)) if barred else (width, 0.9 + 0.55 * sum(deepest))
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    grid = figure.subplots(
        len(there), len(kinds), squeeze=False, gridspec_kw={"width_ratios": ratios, "height_ratios": deepest}
    )
    for column, (kind, columns) in enumerate(zip(kinds, widest, strict=True)):
        norm = score_norm(table.of(kind))
        for row, tower in enumerate(there):
            scores = table.of(kind, tower)
            axes = grid[row, column]
            if not scores:
                axes.set_axis_off()
                continue
            _panel(axes, scores, norm)
            gap = " " if columns > _NARROW else "\n"
            axes.set_title(f"{tower} tower:{gap}{KINDS[kind]}", fontsize=11, loc="center")
        nested = kind == "neurons" and table.settings.get("interaction") == "nested"
        share = " (its own share of the joint loss with all before it)" if nested else ""
        grid[-1, column].set_xlabel(_COLUMNS.get(kind, "") + share)
        if columns > _NARROW:  # (one as narrow as a layer's has no room for it, and its cells hold the numbers)
            _bar(figure, list(grid[:, column]), norm, columns, score_label(table))
    layout = figure.get_layout_engine()
    if layout is not None:
        layout.set(w_pad=0.1, h_pad=0.08)  # type: ignore[call-arg]
    return figure


def _bar(figure: Figure, axes: list[Axes], norm: SymLogNorm, columns: int, label: str) -> None:
    bar = figure.colorbar(
        ScalarMappable(norm, _MAP),
        ax=axes,
        location="bottom",
        shrink=0.9,
        aspect=5 * min(columns, _MOST_NUMBERS),
        pad=0.02,
    )
    bar.set_label(label, fontsize=9)
    bar.ax.tick_params(labelsize=8)
    bar.ax.minorticks_off()
    bar.set_ticks(score_ticks(norm), labels=[signed(f"{tick:g}") for tick in score_ticks(norm)])


def score_label(table: ScoreTable) -> str:
    """What a score is, and in which unit."""
    if table.metric == "contrastive_loss":
        return "score: what its removal adds to the contrastive loss, in 0.01 nats"
    return f"score: what its removal costs, in points of {table.metric}"


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


def is_uncertain(score: Score) -> bool:
    """Whether a score is within two standard errors of 0; not so where there are none."""
    return math.isfinite(score.stderr) and abs(score.value) <= 2 * score.stderr


def _panel(axes: Axes, scores: Sequence[Score], norm: SymLogNorm) -> None:
    """One tower's scores of one kind, each cell with its number and, in small, its standard error."""
    rows, columns = (1 + max(getattr(score.unit, name) for score in scores) for name in ("layer", "index"))
    values = np.full((rows, columns), np.nan)
    for score in scores:
        values[score.unit.layer, score.unit.index] = 100 * score.value
    small = columns <= _MOST_NUMBERS
    mesh = axes.pcolormesh(
        np.arange(columns + 1) - 0.5,
        np.arange(rows + 1) - 0.5,
        values,
        cmap=_MAP,
        norm=norm,
        edgecolors=PAGE if small else "none",
        linewidth=1.5 if small else 0,
        rasterized=not small,
    )
    axes.invert_yaxis()
    axes.set_ylabel("layer")
    axes.set_yticks(range(rows))
    axes.tick_params(which="both", length=0, labelsize=8)
    axes.spines[:].set_visible(False)
    if columns == 1:
        axes.set_xticks([])
    elif small:
        axes.set_xticks(range(columns))
    for score in scores if small else ():
        _cell(axes, score, _ink(mesh.get_cmap(), float(norm(100 * score.value))))


def _cell(axes: Axes, score: Score, colour: str) -> None:
    x, y = score.unit.index, score.unit.layer
    if is_uncertain(score):
        axes.add_patch(
            Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, hatch="///", edgecolor=colour, linewidth=0, alpha=0.35)
        )
    axes.text(x, y - 0.12, short_number(100 * score.value), ha="center", va="center", fontsize=8, color=colour)
    if math.isfinite(score.stderr):
        error = f"±{short_number(100 * score.stderr)}"
        axes.text(x, y + 0.26, error, ha="center", va="center", fontsize=6, color=colour)


def short_number(value: float) -> str:
    """Two digits that matter, with a true minus."""
    digits = 0 if abs(value) >= 9.95 else 1 if abs(value) >= 0.995 else 2
    return signed(f"{value:.{digits}f}".replace("-0.00", "0.00"))


def signed(number: str) -> str:
    """A number with a true minus."""
    return number.replace("-", "−")


def _ink(colours: Colormap, level: float) -> str:
    """Black or white, whichever reads better on the cell."""
    red, green, blue, _ = colours(level)
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"
