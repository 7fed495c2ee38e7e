"""Choice of the steps of an order that are taken for some limits."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from ..cost import TOWERS
from ..encoder import EncoderCore
from ..towers import Unit
from ._budget import Limit, Measure, Sizes, unreachable
from ._order import Freed, Step

SizesWithout = Callable[[Sequence[Unit]], Sizes]
"""Sizes of the model without some units."""


def allowed(encoder: EncoderCore, order: Sequence[Step], min_heads: int, min_neurons: int) -> list[Step]:
    """The order without what would leave too little."""
    left: dict[tuple[str, int, str], int] = {}
    least: dict[tuple[str, int, str], int] = {}
    for key, units in encoder.sublayers.items():
        left[key] = units.channels
        own = min_heads * units.unit_size if key[2] == "head" else min_neurons
        least[key] = max(own, 0 if units.can_be_empty else units.unit_size)
    kept, blocks = [], {name: len(tower.blocks) for name, tower in encoder.towers.items()}
    for step in order:
        if step[0].unit.kind == "block":
            if blocks[step[0].unit.tower] > 1:
                blocks[step[0].unit.tower] -= 1
                kept.append(step)
            continue
        keys = [(score.unit.tower, score.unit.layer, score.unit.part) for score in step]
        # Of an attention or an MLP, some may have gone before the rest.
        gone = [
            len(score.unit.channels) if score.unit.kind in {"head", "neurons"} else left[key]
            for score, key in zip(step, keys, strict=True)
        ]
        if all(left[key] - count >= least[key] for key, count in zip(keys, gone, strict=True)):
            for key, count in zip(keys, gone, strict=True):
                left[key] -= count
            kept.append(step)
    return kept


def shortest(
    order: Sequence[Step], limits: Sequence[Limit], measured: SizesWithout, freed: Mapping[Measure, Freed]
) -> list[Step]:
    """The shortest beginning of the order, tower by tower where limits are, that meets all limits."""
    least = measured(units_of(order))
    if failing := excess(least, limits):
        raise ValueError(unreachable(failing, "with the units of this table"))
    chosen: list[Step] = []
    for towers in dict.fromkeys(limit.towers for limit in sorted(limits, key=lambda limit: len(limit.towers))):
        own = [limit for limit in limits if set(limit.towers) <= set(towers)]
        taken = {id(step) for step in chosen}
        rest = [step for step in order if step[0].unit.tower in towers and id(step) not in taken]
        now = measured(units_of(chosen))
        guess = max(_guess(rest, limit, freed, limit.of(now), limit.of(least)) for limit in own)
        fails = partial(_fails, chosen, rest, own, measured)
        chosen = [*chosen, *rest[: _first(fails, len(rest), guess)]]
    taken = {id(step) for step in chosen}
    return [step for step in order if id(step) in taken]


def _fails(
    chosen: Sequence[Step], rest: Sequence[Step], limits: Sequence[Limit], measured: SizesWithout, count: int
) -> bool:
    """True if more must go than the chosen steps and the first ``count`` of the rest."""
    return bool(excess(measured(units_of([*chosen, *rest[:count]])), limits))


def _guess(
    rest: Sequence[Step], limit: Limit, freed: Mapping[Measure, Freed], now: int | float, least: int | float
) -> int:
    """Number of steps, if what they free adds up."""
    by = freed["parameters" if limit.measure == "parameters" else "multiply_adds"]
    running = [0.0, *_cumulative(rest, by, limit.towers)]
    wanted = (now - limit.most) / max(now - least, 1e-12) * running[-1]
    return next((count for count, freed in enumerate(running) if freed >= wanted), len(rest))


def _cumulative(order: Sequence[Step], freed_by: Freed, towers: Sequence[str] = TOWERS) -> list[float]:
    """Sizes that the first, the first two, … steps free together, added up over single units; nothing of a block twice."""
    freed: dict[tuple[str, int, str], float] = {}
    whole: dict[tuple[str, int], float] = {}
    running, total = [], 0.0
    for step in order:
        for score in step:
            unit = score.unit
            layer = (unit.tower, unit.layer)
            if unit.tower not in towers or layer in whole:
                continue
            own = float(freed_by(unit))
            if unit.kind == "block":
                total += own - sum(amount for key, amount in freed.items() if key[:2] == layer)
                whole[layer] = own
                continue
            part = (*layer, unit.part)
            before = freed.get(part, 0.0)
            freed[part] = own if unit.kind in {"attention", "mlp"} else before + own
            total += freed[part] - before
        running.append(total)
    return running


def _first(fails: Callable[[int], bool], most: int, guess: int) -> int:
    """The first number that does not fail, at most ``most``, which does not; sought in growing strides from a guess."""
    low, high, stride, probe = 0, most, 1, guess
    while low < high:
        probe = min(max(probe, low), high - 1)
        if fails(probe):
            low, probe = probe + 1, probe + stride
        else:
            high, probe = probe, probe - stride
        stride *= 2
        if stride >= high - low:
            probe = (low + high) // 2
    return low


def put_back(
    chosen: Sequence[Step], limits: Sequence[Limit], measured: SizesWithout, freed: Mapping[Measure, Freed]
) -> list[Step]:
    """Steps that must stay removed: the others come back, the last that went first, where all limits hold without them."""
    # An MLP's neuron groups come back in reverse, and nothing of a block that has gone. The last step is needed. Not for limits
    # of time, which is never twice the same.
    kept = list(chosen)
    sizes = measured(units_of(kept))
    tries = _TRIES
    for step in reversed(chosen[:-1]):
        room = all(
            sum(freed[limit.measure](s.unit) for s in step if s.unit.tower in limit.towers) * (1 - 1e-6)
            <= limit.most - limit.of(sizes)
            for limit in limits
        )
        if not room or not _may_return(step, kept):
            continue
        fewer = [other for other in kept if other is not step]
        larger = measured(units_of(fewer))
        if excess(larger, limits):  # a sub-layer that was empty brings its norm and bias along
            tries -= 1
            if not tries:
                break
        else:
            kept, sizes = fewer, larger
    return kept


_TRIES = 8
"""Tries that may fail before no more is put back: each measures a copy of the model."""


def _may_return(step: Step, kept: Sequence[Step]) -> bool:
    """True if no step that stays removed was scored with this one gone."""
    later = [other.unit for others in kept if others is not step for other in others]
    return not any(_stands_on(other, score.unit) for score in step for other in later)


def _stands_on(other: Unit, unit: Unit) -> bool:
    """True if a unit goes only after another, or with it."""
    if (other.tower, other.layer) != (unit.tower, unit.layer):
        return False
    if other.kind == "neurons" and unit.kind == "neurons":
        return other.index > unit.index
    return (
        other.kind != unit.kind and other.kind in {"block", "attention", "mlp"} and other.part in {unit.part, "block"}
    )


def excess(sizes: Sizes, limits: Sequence[Limit]) -> dict[Limit, int | float]:
    """The limits that do not hold, each with what there is."""
    found = {limit: limit.of(sizes) for limit in limits}
    return {limit: amount for limit, amount in found.items() if amount > limit.most}


def units_of(steps: Sequence[Step]) -> list[Unit]:
    """The units of some steps, one after another."""
    return [score.unit for step in steps for score in step]
