"""Heads and neurons that a plan leaves of each layer."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..planning import Plan
from ..scoring import ScoreTable
from ..towers import Unit

Removed = dict[tuple[str, int, str], set[int]]


@dataclass(frozen=True)
class PlannedLayer:
    """One layer before and after; ``heads`` and ``neurons`` are empty and None where there are no scores to count them by."""

    tower: str
    index: int
    heads: tuple[bool, ...]
    removed_heads: int
    neurons: int | None
    removed_neurons: int
    removed: bool


def removed_channels(plan: Plan) -> Removed:
    """Channels that go, by tower, layer and part; of a block that goes whole, the key alone."""
    found: Removed = {}
    for unit in plan.units:
        found.setdefault((unit.tower, unit.layer, unit.part), set()).update(unit.channels)
    return found


def share_removed(unit: Unit, removed: Removed) -> float:
    """Share of a unit that a plan removes, from 0 to 1."""
    if (unit.tower, unit.layer, "block") in removed:
        return 1.0
    gone = removed.get((unit.tower, unit.layer, unit.part), set())
    return len(gone.intersection(unit.channels)) / len(unit.channels) if unit.channels else 0.0


def planned_layers(plan: Plan, table: ScoreTable | None) -> list[PlannedLayer]:
    """Layers in order; without scores of the same model, only those that lose something."""
    removed = removed_channels(plan)
    scored = [score.unit for score in table.scores] if table else []
    places = sorted({(unit.tower, unit.layer) for unit in [*scored, *plan.units]})
    return [_layer(tower, index, plan, scored, removed) for tower, index in places]


def _layer(tower: str, index: int, plan: Plan, scored: Sequence[Unit], removed: Removed) -> PlannedLayer:
    own = [unit for unit in scored if (unit.tower, unit.layer) == (tower, index)]
    heads = sorted((unit for unit in own if unit.kind == "head"), key=lambda unit: unit.index)
    kept = tuple(share_removed(unit, removed) < 1 for unit in heads)
    neurons = {channel for unit in own if unit.part == "neurons" for channel in unit.channels}
    whole = (tower, index, "block") in removed
    planned = [unit for unit in plan.units if (unit.tower, unit.layer, unit.kind) == (tower, index, "head")]
    gone = removed.get((tower, index, "neurons"), set())
    return PlannedLayer(
        tower=tower,
        index=index,
        heads=kept,
        removed_heads=kept.count(False) if kept else len(planned),
        neurons=len(neurons) or None,
        removed_neurons=len(neurons) if whole else len(gone),
        removed=whole,
    )
