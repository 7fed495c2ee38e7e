"""Scores as heat maps: layer by head, and layer by neuron group, for each tower."""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, SymLogNorm
from matplotlib.figure import Figure

from ..scoring import Score, ScoreTable

_KINDS = {"head": "attention heads", "neurons": "FFN neuron groups"}
_COLUMNS = {"head": "head", "neurons": "neuron group, least important first"}
_MAP = "PuOr_r"
"""Diverging and told apart by the colour-blind: orange is worth keeping, purple is better gone, white is no matter."""


def heat_maps(table: ScoreTable, path: str | Path | None = None) -> Figure:
    """Draws the scores of all heads and neuron groups, in hundredths of the metric.

    Colours are linear up to the typical standard error of a score and logarithmic beyond, and alike for both towers.

    Args:
        table: The score table.
        path: Where to save the picture, if anywhere; its suffix is the format.

    Returns:
        The figure.

    Raises:
        ValueError: If the table has neither heads nor neuron groups.
    """
    kinds = [kind for kind in _KINDS if table.of(kind)]
    if not kinds:
        raise ValueError("table must hold scores of heads or neuron groups; found neither.")
    towers = list(dict.fromkeys(score.unit.tower for kind in kinds for score in table.of(kind)))
    widest = [max(score.unit.index for score in table.of(kind)) + 1 for kind in kinds]
    deepest = [1 + max(s.unit.layer for kind in kinds for s in table.of(kind, tower)) for tower in towers]
    figure = Figure(figsize=(2.2 + 0.62 * sum(widest), 1.9 + 0.55 * sum(deepest)), dpi=150, layout="constrained")
    grid = figure.subplots(
        len(towers),
        len(kinds),
        squeeze=False,
        gridspec_kw={"width_ratios": widest, "height_ratios": deepest},
    )
    for column, kind in enumerate(kinds):
        norm = _norm(table.of(kind))
        for row, tower in enumerate(towers):
            _panel(grid[row, column], table.of(kind, tower), norm)
            grid[row, column].set_title(f"{tower} tower: {_KINDS[kind]}", fontsize=11)
        nested = kind == "neurons" and table.settings.get("interaction") == "nested"
        grid[-1, column].set_xlabel(
            _COLUMNS[kind] + (" (its own share of the joint loss with all before it)" if nested else "")
        )
        bar = figure.colorbar(
            ScalarMappable(norm, _MAP),
            ax=list(grid[:, column]),
            location="bottom",
            shrink=0.9,
            aspect=5 * widest[column],
            pad=0.02,
        )
        bar.set_label(_unit(table), fontsize=9)
        bar.ax.tick_params(labelsize=8)
        bar.ax.minorticks_off()
        bar.set_ticks(_ticks(norm), labels=[f"{tick:g}".replace("-", "−") for tick in _ticks(norm)])
    dense = f"{table.dense:.3f}".replace("-", "−")
    figure.suptitle(f"MoPE scores ± standard error; with nothing removed, {table.metric} is {dense} (higher is better)")
    layout = figure.get_layout_engine()
    if layout is not None:
        layout.set(w_pad=0.1, h_pad=0.08)  # type: ignore[call-arg]
    if path is not None:
        figure.savefig(path)
    return figure


def _unit(table: ScoreTable) -> str:
    if table.metric == "contrastive_loss":
        return "score: what its removal adds to the contrastive loss, in 0.01 nats"
    return f"score: what its removal costs, in points of {table.metric}"


def _norm(scores: Sequence[Score]) -> SymLogNorm:
    """Colours of one kind of unit: 0 in the middle, the largest score at an end."""
    errors = [100 * score.stderr for score in scores if math.isfinite(score.stderr)]
    largest = max(100 * abs(score.value) for score in scores) or 1.0
    linear = min(statistics.median(errors) if errors else largest / 100, largest / 10) or largest / 100
    return SymLogNorm(linthresh=linear, vmin=-largest, vmax=largest)


def _ticks(norm: SymLogNorm) -> list[float]:
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
    image = axes.imshow(values, cmap=_MAP, norm=norm, aspect="auto")
    for score in scores:
        x, y = score.unit.index, score.unit.layer
        colour = _ink(image.get_cmap(), float(norm(100 * score.value)))
        axes.text(x, y - 0.12, _number(100 * score.value), ha="center", va="center", fontsize=8, color=colour)
        if math.isfinite(score.stderr):
            error = f"±{_number(100 * score.stderr)}"
            axes.text(x, y + 0.26, error, ha="center", va="center", fontsize=5.5, color=colour)
    axes.set_xticks(range(columns))
    axes.set_yticks(range(rows))
    axes.set_ylabel("layer")
    axes.set_xticks(np.arange(columns - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(rows - 1) + 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="both", length=0, labelsize=8)
    axes.spines[:].set_visible(False)


def _number(value: float) -> str:
    """Two digits that matter, with a true minus."""
    digits = 0 if abs(value) >= 9.95 else 1 if abs(value) >= 0.995 else 2
    return f"{value:.{digits}f}".replace("-0.00", "0.00").replace("-", "−")


def _ink(colours: Colormap, level: float) -> str:
    """Black or white, whichever reads better on the cell."""
    red, green, blue, _ = colours(level)
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"
