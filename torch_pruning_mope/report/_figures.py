"""Figures of a report besides the heat maps."""

import math
import statistics
from collections.abc import Callable, Sequence
from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..distillation import TrainingStep
from ..planning import Plan
from ..scoring import ScoreTable
from ._heat_maps import KINDS, score_label, score_norm, score_ticks
from ._layers import PlannedLayer, removed_channels, share_removed
from ._read import Evaluation, labels
from ._text import amount, milliseconds, percent, signed
from ._theme import BLUE, GREY, INK, ORANGE

MEASURES: dict[str, tuple[str, Callable[[float], str]]] = {
    "parameters": ("parameters", amount),
    "multiply_adds": ("multiply-adds", amount),
    "latency_ms": ("latency", milliseconds),
}
_BARS = {"dense": (GREY, ""), "pruned": (ORANGE, "////"), "reconstructed": (ORANGE, ""), "distilled": (BLUE, "")}
_DIRECTIONS = {"i2t": "image → text", "t2i": "text → image"}
_LINEAR = 40
"""Multiple of the typical standard error up to which scores fit on a linear scale."""
_STATES = {"kept": ("o", BLUE, BLUE), "removed": ("x", ORANGE, "none"), "removed in part": ("^", GREY, "none")}


def draw_sizes(rows: Sequence[Evaluation]) -> Figure:
    """Parameters, multiply-adds and latency of each model."""
    measured = [name for name in MEASURES if any(row.get(name) is not None for row in rows)]
    figure, grid = _panels(len(measured), len(rows))
    for axes, name in zip(grid, measured, strict=True):
        title, show = MEASURES[name]
        values = [row.get(name) for row in rows]
        most = max(value for value in values if value is not None) or 1
        _bars(axes, rows, [(value or 0) / most for value in values], 1.03, [_or_dash(v, show) for v in values])
        axes.set_xlim(0, 1.35)
        axes.set_xticks([])
        axes.set_title(title)
    return figure


def draw_recalls(rows: Sequence[Evaluation]) -> Figure:
    """R@1 of each model as a bar, R@5 and R@10 as marks."""
    ways = [way for way in _DIRECTIONS if any(row.get(f"{way}_r1") is not None for row in rows)]
    figure, grid = _panels(len(ways), len(rows))
    for axes, way in zip(grid, ways, strict=True):
        values = [row.get(f"{way}_r1") for row in rows]
        _bars(axes, rows, [value or 0 for value in values], 104.0, [_or_dash(value, percent) for value in values])
        for cut, marker in ((5, "|"), (10, "d")):
            points = [row.get(f"{way}_r{cut}") for row in rows]
            axes.plot([math.nan if x is None else x for x in points], range(len(rows)), marker, color=INK, markersize=6)
        axes.set_xlim(0, 118)
        axes.set_xticks(range(0, 101, 20))
        axes.grid(axis="x")
        axes.set_title(_DIRECTIONS[way])
        axes.set_xlabel("recall, percent")
    return figure


def _panels(count: int, rows: int) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(5.2, count * (0.6 + 0.27 * rows) + 0.3), layout="constrained")
    return figure, list(figure.subplots(count, 1, squeeze=False, sharex=True)[:, 0])


def _bars(
    axes: Axes, rows: Sequence[Evaluation], values: Sequence[float | int], x: float, texts: Sequence[str]
) -> None:
    """A bar per row, with a text at ``x``; stages differ in colour and hatching."""
    for place, (row, value, text) in enumerate(zip(rows, values, texts, strict=True)):
        colour, hatch = _BARS.get(row.stage, (GREY, "...."))
        axes.barh([place], [value], 0.66, facecolor="none" if hatch else colour, edgecolor=colour, hatch=hatch)
        axes.text(x, place, text, va="center")
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), [name if len(name) <= 32 else name[:31] + "…" for name in labels(rows)])
    axes.tick_params(axis="y", length=0)


def draw_curves(steps: Sequence[TrainingStep]) -> Figure:
    """The loss, each of its terms and the learning rate over steps, each on its own scale."""
    panels = {"loss": [step.loss for step in steps]}
    for term in dict.fromkeys(name for step in steps for name in step.terms):
        panels[f"term: {term}"] = [step.terms.get(term, math.nan) for step in steps]
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


def draw_errors(table: ScoreTable, tower: str, kind: str, plan: Plan | None = None) -> Figure:
    """Scores from lowest to highest, ± two standard errors, marked as kept or removed if there is a plan."""
    figure = Figure(figsize=(5.2, 2.9), layout="constrained")
    axes = figure.subplots()
    scores = sorted(table.of(kind, tower), key=lambda score: score.value)
    removed = None if plan is None else removed_channels(plan)
    shares = [0.0 if removed is None else share_removed(score.unit, removed) for score in scores]
    states = ["removed" if share == 1 else "kept" if share == 0 else "removed in part" for share in shares]
    axes.axhline(0, color=INK, linewidth=0.8)
    for state, (marker, colour, fill) in _STATES.items():
        own = [(place, score) for place, score in enumerate(scores) if states[place] == state]
        if own:
            axes.errorbar(
                [place for place, _ in own],
                [100 * score.value for _, score in own],
                [200 * score.stderr if math.isfinite(score.stderr) else 0.0 for _, score in own],
                fmt=marker,
                color=colour,
                markerfacecolor=fill,
                markersize=5,
                linewidth=1.2,
                label=state,
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
    axes.set_ylabel(score_label(table).removeprefix("score: "), fontsize=9)
    if plan is not None:
        axes.legend(loc="upper left", fontsize=9)
    return figure


def draw_kept(layers: Sequence[PlannedLayer]) -> Figure:
    """Heads and neurons that are left of each layer of one tower; only of layers whose units were scored."""
    most = max((len(layer.heads) for layer in layers), default=0)
    panels = [name for name, there in (("heads", most), ("neurons", any(layer.neurons for layer in layers))) if there]
    widths = [max(1.6, 0.24 * most) if name == "heads" else 2.9 for name in panels]
    figure = Figure(figsize=(0.9 + sum(widths), 0.9 + 0.3 * len(layers)), layout="constrained")
    grid = figure.subplots(1, len(panels), squeeze=False, sharey=True, gridspec_kw={"width_ratios": widths})[0]
    for axes, name in zip(grid, panels, strict=True):
        _heads(axes, layers, most) if name == "heads" else _neurons(axes, layers)
        axes.set_ylim(len(layers) - 0.5, -0.5)
        axes.set_yticks(range(len(layers)), [f"{layer.index}{' (gone)' if layer.removed else ''}" for layer in layers])
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
    grid[0].set_ylabel("layer")
    return figure


def _heads(axes: Axes, layers: Sequence[PlannedLayer], most: int) -> None:
    for kept, marker, colour, fill in ((True, "s", BLUE, BLUE), (False, "X", ORANGE, "none")):
        places = [(x, y) for y, layer in enumerate(layers) for x, is_kept in enumerate(layer.heads) if is_kept is kept]
        xs, ys = [x for x, _ in places], [y for _, y in places]
        axes.scatter(xs, ys, s=70, marker=marker, edgecolors=colour, facecolors=fill)
    axes.set_title("heads")
    axes.set_xticks(range(most))
    axes.set_xlim(-0.7, most - 0.3)


def _neurons(axes: Axes, layers: Sequence[PlannedLayer]) -> None:
    totals = [layer.neurons or 0 for layer in layers]
    kept = [total - layer.removed_neurons for total, layer in zip(totals, layers, strict=True)]
    axes.barh(range(len(layers)), totals, 0.62, facecolor="none", edgecolor=GREY)
    axes.barh(range(len(layers)), kept, 0.62, color=BLUE)
    for row, (left, total) in enumerate(zip(kept, totals, strict=True)):
        axes.text(1.03 * max(totals), row, f"{left} of {total}" if total else "not scored", va="center")
    axes.set_title("FFN neurons")
    axes.set_xlim(0, 1.5 * max(totals))
    axes.set_xticks([])


def _or_dash(value: float | None, show: Callable[[float], str]) -> str:
    return "—" if value is None else show(value)
