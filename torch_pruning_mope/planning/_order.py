"""The order in which units go for a budget: what loses least per what it frees, first.

Scores are not additive; on a joint path each was measured without those before it, and the path is kept as it is. For other
tables the order is by score per cost, an MLP's neuron groups lowest first, and a block competes with what is left of its parts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from ..scoring import Score, ScoreTable, Unit

Layer = tuple[str, int]


def removal_order(table: ScoreTable, cost: Callable[[Unit], int | float], chunk: int = 1) -> list[Score]:
    """All units of a table, in the order in which they go.

    Args:
        table: Scores.
        cost: What removing a unit from the whole model frees.
        chunk: Neurons that go together, so that a multiple of it is left of every MLP: groups are cut and joined, and
            share their scores out evenly over their neurons.

    Returns:
        The units with the loss that each adds. A block that has gone is not followed by its parts.
    """
    if table.settings.get("interaction") == "joint" and chunk == 1:
        return _without_leftovers(table.scores)
    queues: dict[object, list[Score]] = {}
    for score in table.scores:
        unit = score.unit
        layer = (unit.tower, unit.layer)
        key: object = layer if unit.kind == "neurons" else unit
        queues.setdefault(key, []).append(score)
    for key, scores in queues.items():
        if scores[0].unit.kind == "neurons":
            ranked = sorted(scores, key=lambda score: score.unit.index)
            queues[key] = ranked if chunk == 1 else _chunks(ranked, chunk)
    return _merged(queues, cost)


def _without_leftovers(scores: Sequence[Score]) -> list[Score]:
    """A path without what goes with a block that has gone before."""
    gone: set[Layer] = set()
    kept = []
    for score in scores:
        layer = (score.unit.tower, score.unit.layer)
        if layer not in gone:
            kept.append(score)
        if score.unit.kind == "block":
            gone.add(layer)
    return kept


def _chunks(groups: Sequence[Score], size: int) -> list[Score]:
    """The same neurons in the same order, cut so that multiples of ``size`` are left."""
    neurons = [(channel, score.value / len(score.unit.channels)) for score in groups for channel in score.unit.channels]
    first = len(neurons) % size
    edges = [0, *([first] if first else []), *range(first + size, len(neurons) + 1, size)]
    found = []
    for rank, (start, stop) in enumerate(pairwise(edges)):
        part = neurons[start:stop]
        unit = replace(groups[0].unit, index=rank, channels=tuple(channel for channel, _ in part))
        value = sum(share for _, share in part)
        found.append(Score(unit, value, groups[0].stderr, groups[0].loss))
    return found


def _merged(queues: Mapping[object, list[Score]], cost: Callable[[Unit], int | float]) -> list[Score]:
    """All queues in one order by value per cost; what covers others has the value and cost of what is left of it."""
    left = {key: list(scores) for key, scores in queues.items()}
    value = {key: scores[0].value for key, scores in left.items()}
    size = {key: cost(scores[0].unit) for key, scores in left.items()}
    order = []
    while left:
        key = min(left, key=lambda key: value[key] / max(size[key], 1e-12))
        score = replace(left[key].pop(0), value=value[key])
        order.append(score)
        taken = size[key]
        if left[key]:
            value[key], size[key] = left[key][0].value, cost(left[key][0].unit)
        else:
            del left[key]
        for other in list(left):
            if _covers(score.unit, left[other][0].unit):
                del left[other]
            elif _covers(left[other][0].unit, score.unit):  # frees less now, and has lost some already
                value[other] = max(0.0, value[other] - score.value) if value[other] > 0 else value[other]
                size[other] -= taken
    return order


_COVERED = {
    "block": {"head", "neurons", "attention", "mlp"},
    "attention": {"head"},
    "mlp": {"neurons"},
}


def _covers(whole: Unit, part: Unit) -> bool:
    """Whether a unit holds another."""
    same = (whole.tower, whole.layer) == (part.tower, part.layer)
    return same and part.kind in _COVERED.get(whole.kind, ())
