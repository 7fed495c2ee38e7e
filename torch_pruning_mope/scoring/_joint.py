"""Joint paths: heads, neuron groups and blocks of both towers in one order, by the metric's loss per parameter freed.

The paper ranks each kind of unit by itself, by the loss when one unit of the whole model goes, and sets a ratio for each kind.
Here all kinds compete, each unit scored without those gone before it (neither is in the paper), so that every budget of
parameters is a prefix of one path.
"""

from collections.abc import Callable, Sequence

from torch import nn

from ..encoder import EncoderCore
from ._greedy import cheapest_first
from ._loss import Loss
from ._meter import Meter
from ._units import Unit


def freed_parameters(encoder: EncoderCore, unit: Unit) -> int:
    """Number of parameters that go with a unit when it is cut out of the whole model.

    Biases of output layers go with no head and no neuron, and norms with their block alone.

    Returns:
        The number.

    Raises:
        ValueError: If the model has no such unit.
    """
    block = encoder.towers[unit.tower].blocks[unit.layer]
    if unit.kind == "block":
        return _count(block.module)
    units = block.attention if unit.part == "head" else block.feed_forward
    if units is None:
        raise ValueError(f"unit must be of the model as it is now; found {unit}, which it has not.")
    # All parameters of the layers around belong to the units, to each as many as to any other of its kind.
    inner = sum(_count(source) for source in units.sources)
    return (inner + units.output.weight.numel()) * len(unit.channels) // units.channels


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def joint_path(
    meter: Meter,
    encoder: EncoderCore,
    units: Sequence[Unit],
    *,
    lazy: bool = True,
    budget: int | None = None,
    evaluated: Callable[[Unit], object] = lambda _: None,
    removed: Callable[[Unit, Loss], object] = lambda *_: None,
) -> list[tuple[Unit, Loss]]:
    """Units in the order of removal, the least loss per freed parameter first, until ``budget`` parameters are freed.

    An MLP's neuron groups go in their given order. With a block go its heads and neurons that are left, right behind it in the
    path at the block's own loss; what went before it counts as freed already. ``lazy`` as in :func:`greedy_path`.

    Returns:
        The path.
    """
    sizes = {unit: freed_parameters(encoder, unit) for unit in units}
    return cheapest_first(meter, sizes, lazy=lazy, budget=budget, evaluated=evaluated, removed=removed)
