"""Which steps of an order are taken for some limits."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from ..encoder import EncoderCore
from ..scoring import Unit
from ._budget import Limit, Measure, Sizes, unreachable
from ._cost import cumulative
from ._order import Cost, Step

Measured = Callable[[Sequence[Unit]], Sizes]
"""What a model takes once some units have gone."""


def allowed(encoder: EncoderCore, order: Sequence[Step], min_heads: int, min_neurons: int) -> list[Step]:
    """The order without what would leave too little.

    Args:
        encoder: The dual encoder.
        order: The steps.
        min_heads: Heads that every attention keeps.
        min_neurons: Neurons that every MLP keeps.

    Returns:
        The steps that remain, all units of each.
    """
    left: dict[tuple[str, int, str], int] = {}
    least: dict[tuple[str, int, str], int] = {}
    for layer in encoder.layers:
        for kind, units in (("head", layer.block.attention), ("neurons", layer.block.feed_forward)):
            if units is not None:
                key = (layer.tower, layer.index, kind)
                left[key] = units.channels
                own = {"head": min_heads * units.unit_size, "neurons": min_neurons}[kind]
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
    order: Sequence[Step], limits: Sequence[Limit], measured: Measured, costs: Mapping[Measure, Cost]
) -> list[Step]:
    """The shortest beginning of the order, tower by tower where limits are, that meets all limits.

    Args:
        order: The steps.
        limits: The limits.
        measured: What is left once some units have gone.
        costs: What one unit frees, for a first guess.

    Returns:
        The steps.

    Raises:
        ValueError: If there is no such beginning; the message says the least that can be left.
    """
    least = measured(units_of(order))
    if failing := excess(least, limits):
        raise ValueError(unreachable(failing, "with the units of this table"))
    chosen: list[Step] = []
    for towers in dict.fromkeys(limit.towers for limit in sorted(limits, key=lambda limit: len(limit.towers))):
        own = [limit for limit in limits if set(limit.towers) <= set(towers)]
        taken = {id(step) for step in chosen}
        rest = [step for step in order if step[0].unit.tower in towers and id(step) not in taken]
        now = measured(units_of(chosen))
        guess = max(_guess(rest, limit, costs, limit.of(now), limit.of(least)) for limit in own)
        fails = partial(_fails, chosen, rest, own, measured)
        chosen = [*chosen, *rest[: _first(fails, len(rest), guess)]]
    taken = {id(step) for step in chosen}
    return [step for step in order if id(step) in taken]


def _fails(
    chosen: Sequence[Step], rest: Sequence[Step], limits: Sequence[Limit], measured: Measured, count: int
) -> bool:
    """Whether it takes more than what is chosen and so many of the rest."""
    return bool(excess(measured(units_of([*chosen, *rest[:count]])), limits))


def _guess(
    rest: Sequence[Step], limit: Limit, costs: Mapping[Measure, Cost], now: int | float, least: int | float
) -> int:
    """How many steps it should take, if what they free adds up."""
    cost = costs["parameters" if limit.measure == "parameters" else "multiply_adds"]
    running = [0.0, *cumulative(rest, cost, limit.towers)]
    wanted = (now - limit.most) / max(now - least, 1e-12) * running[-1]
    return next((count for count, freed in enumerate(running) if freed >= wanted), len(rest))


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
    chosen: Sequence[Step], limits: Sequence[Limit], measured: Measured, costs: Mapping[Measure, Cost]
) -> list[Step]:
    """What of a choice must go: steps come back, the last that went first, where all limits hold without them.

    An MLP's neuron groups come back in reverse, and nothing of a block that has gone.

    Args:
        chosen: The steps, in their order; the last is needed.
        limits: The limits; of time there is none, which is never twice the same.
        measured: What is left once some units have gone.
        costs: What one unit frees, at least.

    Returns:
        The steps that stay removed, in their order.
    """
    kept = list(chosen)
    sizes = measured(units_of(kept))
    tries = _TRIES
    for step in reversed(chosen[:-1]):
        room = all(
            sum(costs[limit.measure](s.unit) for s in step if s.unit.tower in limit.towers) * (1 - 1e-6)
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
"""How often something may not fit after all, before no more is put back: each try counts a copy of the model."""


def _may_return(step: Step, kept: Sequence[Step]) -> bool:
    """Whether nothing that stays removed was measured with this gone."""
    later = [other.unit for others in kept if others is not step for other in others]
    return not any(_stands_on(other, score.unit) for score in step for other in later)


def _stands_on(other: Unit, unit: Unit) -> bool:
    """Whether a unit goes only after another, or with it."""
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
