"""Greedy paths: the unit with the least loss per size goes first, then the next, each scored without those removed before.

Single removals are not additive: two heads that replace each other both look useless. The paper ranks each kind of unit alone,
by single removals, and sets a ratio for each kind. On a joint path all kinds compete by the loss per freed parameter, so that
every budget of parameters is a prefix of one path. (Neither is in the paper.)
"""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import cast

from ..towers import Unit
from ._journal import Loss
from ._meter import Meter
from ._units import single_ablation


def greedy_path(
    meter: Meter,
    sizes: Mapping[Unit, int],
    *,
    lazy: bool = True,
    budget: int | None = None,
    evaluated: Callable[[Unit], object] = lambda _: None,
    removed: Callable[[Unit, Loss], object] = lambda *_: None,
) -> list[tuple[Unit, Loss]]:
    """Units in the order of removal, the least loss per size first, until ``budget`` is gone, each with the loss by then."""
    # ``lazy`` re-evaluates only the candidate whose last increment is lowest, until the lowest is fresh (Minoux 1978;
    # exact where increments only grow along the path). Without it, every step evaluates all candidates.
    # An MLP's neuron groups go in their given order. With a block goes all that is left of it, right behind it in the path
    # at the block's own loss; what went before it counts as freed already.
    meter.reset()
    left = dict(sizes)
    queues: dict[object, _Queue] = {}
    for unit in left:
        queues.setdefault((unit.tower, unit.layer) if unit.kind == "neurons" else unit, _Queue()).units.append(unit)
    path: list[tuple[Unit, Loss]] = []
    freed = 0
    while queues and (budget is None or freed < budget):
        lowest = _lowest(queues)
        while not queues[lowest].fresh:
            stale = [queue for queue in queues.values() if not queue.fresh]
            # Candidates without a measurement are measured together, which costs the engine less than one by one.
            unknown = [queue for queue in stale if not lazy or queue.loss is None]
            _measure(meter, unknown or [queues[lowest]], left, path[-1][1].value if path else 0.0, evaluated)
            lowest = _lowest(queues)
        for queue in queues.values():
            queue.fresh = False
        taken = _take(queues, lowest, left)
        path += taken
        freed += left[taken[0][0]]
        if queues:
            meter.remove(single_ablation(taken[0][0]))
        for unit, loss in taken:
            removed(unit, loss)
    meter.reset()
    return path


@dataclass
class _Queue:
    """Units that can only go in this order: the neuron groups of one MLP; or one head; or one block."""

    units: list[Unit] = field(default_factory=list)
    loss: Loss | None = None  # once the first of them is gone besides those before it; None before it is measured
    slope: float = -math.inf  # increment of the loss per parameter freed
    fresh: bool = False  # both are of the model as it is now

    def forget(self) -> None:
        """Discards the measurement."""
        self.loss, self.slope, self.fresh = None, -math.inf, False


def _lowest(queues: Mapping[object, _Queue]) -> object:
    """The queue with the least loss per parameter, the first of those that tie."""
    return min(queues, key=lambda key: queues[key].slope)


def _measure(
    meter: Meter,
    queues: Collection[_Queue],
    sizes: Mapping[Unit, int],
    done: float,
    evaluated: Callable[[Unit], object],
) -> None:
    """Measures the next unit of some queues, given the loss of the model as it is."""
    owner = {single_ablation(queue.units[0]): queue for queue in queues}
    for ablation, loss in meter.losses(list(owner)):
        queue = owner[ablation]
        queue.loss, queue.fresh = loss, True
        queue.slope = (loss.value - done) / max(1, sizes[queue.units[0]])
        evaluated(queue.units[0])


def _take(queues: dict[object, _Queue], key: object, sizes: dict[Unit, int]) -> list[tuple[Unit, Loss]]:
    """Takes a queue's next unit out, and with a block all that is left of it."""
    queue = queues[key]
    unit, loss = queue.units.pop(0), cast("Loss", queue.loss)
    queue.forget()
    if not queue.units:
        del queues[key]
    taken = [(unit, loss)]
    for other, rest in list(queues.items()):
        first = rest.units[0]
        if (first.tower, first.layer) != (unit.tower, unit.layer):
            continue
        if unit.kind == "block":
            taken += [(inner, loss) for inner in queues.pop(other).units]
        elif first.kind == "block":  # frees less now
            sizes[first] -= sizes[unit]
            rest.forget()
    return taken
