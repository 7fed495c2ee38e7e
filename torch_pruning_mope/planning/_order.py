"""Order in which units go for a budget: the least loss per parameter, or multiply-add, that it frees, first.

Scores are not additive; on a joint path each was measured without those before it, and the path is kept as it is. For other
tables an MLP's neuron groups go lowest first, and a block competes with what is left of its parts.

An order is of *steps*, units that go together: one, or, where widths stay uniform, one of every layer of a tower.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from ..scoring import Score, ScoreTable
from ..towers import Unit

Layer = tuple[str, int]
Step = tuple[Score, ...]
"""Units that go together."""
Freed = Callable[[Unit], int | float]
"""Parameters or multiply-adds that go with a unit cut out of the whole model."""


def removal_order(table: ScoreTable, freed: Freed, chunk: int = 1, *, uniform: bool = False) -> list[Step]:
    """All units of a table, in the order in which they go, with the loss that each adds; nothing of a block that has gone."""
    joint = table.settings.get("interaction") == "joint"
    if joint and not uniform:
        path = table.scores if chunk == 1 else _path_in_chunks(table.scores, chunk)
        return [(score,) for score in _without_leftovers(path)]
    if uniform and any(score.unit.kind in {"attention", "mlp"} for score in table.scores):
        raise ValueError(
            "table must hold no whole attention or mlp for uniform=True, where all layers keep as many heads and neurons; "
            "found some. Score heads, neurons and blocks, or plan with uniform=False."
        )
    layers: dict[tuple[str, int, str], list[Score]] = {}
    steps: dict[object, list[Step]] = {}
    for score in table.scores:
        unit = score.unit
        if unit.kind in {"head", "neurons"}:
            layers.setdefault((unit.tower, unit.layer, unit.kind), []).append(score)
        else:
            steps[unit] = [(score,)]
    for (tower, layer, kind), scores in layers.items():
        if kind == "neurons":
            layers[tower, layer, kind] = _chunks(sorted(scores, key=lambda score: score.unit.index), chunk)
    if uniform:
        for tower, kind in dict.fromkeys((tower, kind) for tower, _, kind in layers):
            steps[tower, kind] = _levels([scores for key, scores in layers.items() if key[::2] == (tower, kind)])
    else:
        for key, scores in layers.items():
            if key[2] == "neurons":
                steps[key] = [(score,) for score in scores]
            else:
                steps |= {score.unit: [(score,)] for score in scores}
    return _merged(steps, freed)


def _levels(layers: Sequence[Sequence[Score]]) -> list[Step]:
    """The lowest of every layer, then the second of every layer that has so many, and so on."""
    ranked = [
        scores if scores[0].unit.kind == "neurons" else sorted(scores, key=lambda score: score.value)
        for scores in layers
    ]
    return [
        tuple(scores[rank] for scores in ranked if rank < len(scores))
        for rank in range(max(map(len, ranked), default=0))
    ]


def _without_leftovers(scores: Iterable[Score]) -> list[Score]:
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
    if size == 1:
        return list(groups)
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


def _path_in_chunks(scores: Sequence[Score], size: int) -> Iterator[Score]:
    """A path whose neurons go in chunks, each where the last of its neurons would have gone."""
    groups: dict[Layer, list[Score]] = {}
    for score in scores:
        if score.unit.kind == "neurons":
            groups.setdefault((score.unit.tower, score.unit.layer), []).append(score)
    chunks = {layer: _chunks(members, size) for layer, members in groups.items()}
    ready: Counter[Layer] = Counter()
    for score in scores:
        if score.unit.kind != "neurons":
            yield score
            continue
        layer = (score.unit.tower, score.unit.layer)
        ready[layer] += len(score.unit.channels)
        while chunks[layer] and len(chunks[layer][0].unit.channels) <= ready[layer]:
            ready[layer] -= len(chunks[layer][0].unit.channels)
            yield chunks[layer].pop(0)


def _merged(queues: Mapping[object, list[Step]], freed: Freed) -> list[Step]:
    """All queues in one order by value per what is freed; a unit that covers others counts as what is left of it."""
    left = {key: list(steps) for key, steps in queues.items()}
    value = {key: _value(steps[0]) for key, steps in left.items()}
    size = {key: _size(steps[0], freed) for key, steps in left.items()}
    order = []
    while left:
        key = min(left, key=lambda key: value[key] / max(size[key], 1e-12))
        step = left[key].pop(0)
        if len(step) == 1:
            step = (replace(step[0], value=value[key]),)
        order.append(step)
        if left[key]:
            value[key], size[key] = _value(left[key][0]), _size(left[key][0], freed)
        else:
            del left[key]
        for score in step:
            for other in list(left):
                if score.unit.kind in _COVERED:
                    if uncovered := [rest for old in left[other] if (rest := _without(old, score.unit))]:
                        if uncovered[0] != left[other][0]:
                            value[other], size[other] = _value(uncovered[0]), _size(uncovered[0], freed)
                        left[other] = uncovered
                    else:
                        del left[other]
                        continue
                if _covers(left[other][0][0].unit, score.unit):  # frees less now, and has lost some already
                    value[other] = max(0.0, value[other] - score.value) if value[other] > 0 else value[other]
                    size[other] -= freed(score.unit)
    return order


def _value(step: Step) -> float:
    return sum(score.value for score in step)


def _size(step: Step, freed: Freed) -> float:
    return float(sum(freed(score.unit) for score in step))


def _without(step: Step, whole: Unit) -> Step:
    """Returns the rest of a step once a unit has gone with all its parts."""
    return tuple(score for score in step if not _covers(whole, score.unit))


_COVERED = {
    "block": {"head", "neurons", "attention", "mlp"},
    "attention": {"head"},
    "mlp": {"neurons"},
}


def _covers(whole: Unit, part: Unit) -> bool:
    """True if a unit holds another."""
    same = (whole.tower, whole.layer) == (part.tower, part.layer)
    return same and part.kind in _COVERED.get(whole.kind, ())
