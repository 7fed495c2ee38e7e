"""What a plan left of each layer."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..planning import Plan
from ..scoring import ScoreTable, Unit
from ._theme import BLUE, GREY, INK, ORANGE

Channels = dict[tuple[str, int, str], set[int]]


@dataclass(frozen=True)
class Layer:
    """One layer before and after.

    Attributes:
        tower: ``image`` or ``text``.
        index: Its position before.
        heads: Whether each head was kept; empty if the scores do not tell how many there were.
        removed_heads: How many went.
        neurons: How many there were; None if the scores do not tell.
        removed_neurons: How many went.
        removed: Whether it went whole.
    """

    tower: str
    index: int
    heads: tuple[bool, ...]
    removed_heads: int
    neurons: int | None
    removed_neurons: int
    removed: bool


def removed_channels(plan: Plan) -> Channels:
    """Channels that go, by tower, layer and part; not those of layers that go whole."""
    found: Channels = {}
    for unit in plan.units:
        found.setdefault((unit.tower, unit.layer, unit.part), set()).update(unit.channels)
    return found


def share_removed(unit: Unit, removed: Channels) -> float:
    """How much of a unit a plan removes, from 0 to 1."""
    if (unit.tower, unit.layer, "block") in removed:
        return 1.0
    gone = removed.get((unit.tower, unit.layer, unit.part), set())
    return len(gone.intersection(unit.channels)) / len(unit.channels) if unit.channels else 0.0


def layers_of(plan: Plan, table: ScoreTable | None) -> list[Layer]:
    """What a plan leaves of each layer.

    Args:
        plan: The plan.
        table: Scores of the same model, which tell how much there was.

    Returns:
        The layers in order; without a table only those that lose something.
    """
    removed = removed_channels(plan)
    scored = [score.unit for score in table.scores] if table else []
    places = sorted({(unit.tower, unit.layer) for unit in [*scored, *plan.units]})
    return [_layer(tower, index, plan, scored, removed) for tower, index in places]


def _layer(tower: str, index: int, plan: Plan, scored: Sequence[Unit], removed: Channels) -> Layer:
    own = [unit for unit in scored if (unit.tower, unit.layer) == (tower, index)]
    heads = sorted((unit for unit in own if unit.kind == "head"), key=lambda unit: unit.index)
    kept = tuple(share_removed(unit, removed) < 1 for unit in heads)
    neurons = {channel for unit in own if unit.part == "neurons" for channel in unit.channels}
    whole = (tower, index, "block") in removed
    planned = [unit for unit in plan.units if (unit.tower, unit.layer, unit.kind) == (tower, index, "head")]
    gone = removed.get((tower, index, "neurons"), set())
    return Layer(
        tower,
        index,
        kept,
        kept.count(False) if kept else len(planned),
        len(neurons) or None,
        len(neurons) if whole else len(gone),
        whole,
    )


def draw_kept(layers: Sequence[Layer]) -> Figure:
    """Heads and neurons that are left of each layer of one tower.

    Args:
        layers: Layers that the scores tell the size of.

    Returns:
        The figure.
    """
    most = max((len(layer.heads) for layer in layers), default=0)
    panels = [name for name, there in (("heads", most), ("neurons", any(layer.neurons for layer in layers))) if there]
    widths = [max(1.6, 0.24 * most) if name == "heads" else 2.9 for name in panels]
    figure = Figure(figsize=(0.9 + sum(widths), 0.9 + 0.3 * len(layers)), layout="constrained")
    grid = figure.subplots(1, len(panels), squeeze=False, sharey=True, gridspec_kw={"width_ratios": widths})[0]
    for axes, name in zip(grid, panels, strict=True):
        _heads(axes, layers) if name == "heads" else _neurons(axes, layers)
        axes.set_ylim(len(layers) - 0.5, -0.5)
        axes.set_yticks(range(len(layers)), [f"{layer.index}{' (gone)' if layer.removed else ''}" for layer in layers])
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
    grid[0].set_ylabel("layer")
    return figure


def _heads(axes: Axes, layers: Sequence[Layer]) -> None:
    for kept, marker, colour, fill in ((True, "s", BLUE, BLUE), (False, "X", ORANGE, "none")):
        places = [(x, y) for y, layer in enumerate(layers) for x, is_kept in enumerate(layer.heads) if is_kept is kept]
        axes.scatter(
            [x for x, _ in places], [y for _, y in places], s=70, marker=marker, edgecolors=colour, facecolors=fill
        )
    axes.set_title("heads")
    axes.set_xticks(range(max(len(layer.heads) for layer in layers)))
    axes.set_xlim(-0.7, max(len(layer.heads) for layer in layers) - 0.3)


def _neurons(axes: Axes, layers: Sequence[Layer]) -> None:
    rows = range(len(layers))
    totals = [layer.neurons or 0 for layer in layers]
    kept = [total - layer.removed_neurons for total, layer in zip(totals, layers, strict=True)]
    axes.barh(rows, totals, 0.62, facecolor="none", edgecolor=GREY, linewidth=1)
    axes.barh(rows, kept, 0.62, color=BLUE)
    for row, (left, total) in enumerate(zip(kept, totals, strict=True)):
        axes.text(1.03 * max(totals), row, f"{left} of {total}" if total else "not scored", va="center", color=INK)
    axes.set_title("FFN neurons")
    axes.set_xlim(0, 1.5 * max(totals))
    axes.set_xticks([])
