"""Joint path: heads, neuron groups and blocks of both towers in one order, by what the metric loses per parameter freed.

The paper ranks each kind of unit by itself, by what the metric loses when one unit of the whole model goes, and sets a ratio
for each kind. Here all kinds compete, each unit scored without those gone before it (neither is in the paper), so that every
budget of parameters is a prefix of one path.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

from torch import nn

from ..encoder import DualEncoder
from ._loss import Loss
from ._meter import Meter
from ._units import Unit, single_ablation


def freed_parameters(encoder: DualEncoder, unit: Unit) -> int:
    """Parameters that go with a unit when it is cut out of the whole model.

    Biases of output linears go with no head and no neuron, and norms with their block alone.

    Args:
        encoder: The dual encoder.
        unit: The unit.

    Returns:
        Their number.
    """
    block = encoder.towers[unit.tower].blocks[unit.layer]
    if unit.kind == "block":
        return _count(block.module)
    # All of a sub-layer's inner parameters belong to its units, each unit to as many as any other of its kind.
    if unit.kind == "head":
        output = block.attention.output
        inner = _count(block.attention.attention) - _count(output)  # type: ignore[attr-defined]
    else:
        output = block.feed_forward.output
        inner = _count(block.feed_forward.first)  # type: ignore[attr-defined]
    return (inner + output.weight.numel()) * len(unit.channels) // output.in_features


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@dataclass
class _Queue:
    """Units that can only go in this order: the neuron groups of one MLP; or one head; or one block.

    Attributes:
        units: Those that are left.
        loss: The loss once the first of them is gone besides those before it; None before it is measured.
        slope: What that adds to the loss, per parameter freed.
        fresh: Whether both are of the model as it is now.
    """

    units: list[Unit] = field(default_factory=list)
    loss: Loss | None = None
    slope: float = -math.inf
    fresh: bool = False

    def forget(self) -> None:
        """What was measured says nothing any more."""
        self.loss, self.slope, self.fresh = None, -math.inf, False


def joint_path(
    meter: Meter,
    encoder: DualEncoder,
    units: Sequence[Unit],
    *,
    lazy: bool = True,
    budget: int | None = None,
    evaluated: Callable[[Unit], object] = lambda _: None,
    removed: Callable[[Unit, Loss], object] = lambda *_: None,
) -> list[tuple[Unit, Loss]]:
    """Units in the order in which they go, each with the loss once it and those before it are gone.

    Next goes whatever loses least per parameter it frees. An MLP's neuron groups go in their given order. With a block go its
    heads and neurons that are left, right behind it in the path at the block's own loss; what went before it counts as freed
    already.

    Args:
        meter: What measures them; reset before and after.
        encoder: The dual encoder that it measures, for the sizes of the units.
        units: The units, of both towers if need be.
        lazy: Re-evaluate only what was cheapest when last evaluated, until the cheapest is fresh (exact where the loss per
            parameter only grows along the path). False evaluates everything at every step.
        budget: Stop once this many parameters are freed; the path is then the beginning of the whole one. None for all.
        evaluated: Called after each evaluation.
        removed: Called for each unit that goes.

    Returns:
        The path.
    """
    meter.reset()
    sizes = {unit: freed_parameters(encoder, unit) for unit in units}
    queues: dict[object, _Queue] = {}
    for unit in units:
        queues.setdefault((unit.tower, unit.layer) if unit.kind == "neurons" else unit, _Queue()).units.append(unit)
    path: list[tuple[Unit, Loss]] = []
    freed = 0
    while queues and (budget is None or freed < budget):
        lowest = _lowest(queues)
        while not queues[lowest].fresh:
            stale = [queue for queue in queues.values() if not queue.fresh]
            # What has never been measured is measured together, which costs the engine less than one by one.
            unknown = [queue for queue in stale if not lazy or queue.loss is None]
            _measure(meter, unknown or [queues[lowest]], sizes, path[-1][1].value if path else 0.0, evaluated)
            lowest = _lowest(queues)
        for queue in queues.values():
            queue.fresh = False
        taken = _take(queues, lowest, sizes)
        path += taken
        freed += sizes[taken[0][0]]
        if queues:
            meter.remove(single_ablation(taken[0][0]))
        for unit, loss in taken:
            removed(unit, loss)
    meter.reset()
    return path


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
