"""Scores in order, with their standard errors."""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..planning import Plan
from ..scoring import Score, ScoreTable
from ._heat_maps import KINDS, score_label, score_norm, score_ticks, signed
from ._kept import removed_channels, share_removed
from ._theme import BLUE, GREY, INK, ORANGE, PAGE

_LINEAR = 40
"""Times the typical standard error up to which scores fit on a linear scale."""
_STATES = (
    ("kept", BLUE, "o", BLUE),
    ("removed", ORANGE, "x", "none"),
    ("removed in part", GREY, "^", "none"),
)


def draw_error_bars(table: ScoreTable, tower: str, kind: str, plan: Plan | None = None) -> Figure:
    """Scores of one tower and kind from lowest to highest, ± two standard errors; marked as kept or removed if there is a plan.

    Args:
        table: The score table.
        tower: The tower.
        kind: The kind.
        plan: What was removed.

    Returns:
        The figure.
    """
    figure = Figure(figsize=(5.2, 2.9), layout="constrained")
    axes = figure.subplots()
    scores = sorted(table.of(kind, tower), key=lambda score: score.value)
    removed = None if plan is None else removed_channels(plan)
    _points(
        axes, scores, ["kept" if removed is None else _state(share_removed(score.unit, removed)) for score in scores]
    )
    norm = score_norm(scores)
    if float(norm.vmax or 0) > _LINEAR * norm.linthresh:
        axes.set_yscale("symlog", linthresh=norm.linthresh)
        low, high = axes.get_ylim()
        axes.set_yticks([tick for tick in score_ticks(norm) if low <= tick <= high])
        axes.minorticks_off()
    axes.yaxis.set_major_formatter(lambda tick, _: signed(f"{tick:g}"))
    axes.set_xticks([])
    axes.grid(axis="y")
    axes.set_title(f"{tower} tower: {KINDS[kind]}")
    axes.set_xlabel("lowest score first")
    axes.set_ylabel(score_label(table).removeprefix("score: what its removal "), fontsize=9)
    if plan is not None:
        axes.legend(loc="upper left", facecolor=PAGE, edgecolor="none", framealpha=1, fontsize=9)
    return figure


def _state(share: float) -> str:
    return "removed" if share == 1 else "kept" if share == 0 else "removed in part"


def _points(axes: Axes, scores: Sequence[Score], states: Sequence[str]) -> None:
    axes.axhline(0, color=INK, linewidth=0.8)
    for state, colour, marker, fill in _STATES:
        places = [place for place, own in enumerate(states) if own == state]
        if places:
            axes.errorbar(
                places,
                [100 * scores[place].value for place in places],
                [200 * scores[place].stderr if math.isfinite(scores[place].stderr) else 0.0 for place in places],
                fmt=marker,
                color=colour,
                markerfacecolor=fill,
                markersize=5,
                linewidth=1.2,
                label=state,
            )
