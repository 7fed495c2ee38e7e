"""Joint paths: heads, neuron groups and blocks of both towers in one order, by the metric's loss per parameter freed.

The paper ranks each kind of unit by itself, by the loss when one unit of the whole model goes, and sets a ratio for each kind.
Here all kinds compete, each unit scored without those gone before it (neither is in the paper), so that every budget of
parameters is a prefix of one path.
"""

from collections.abc import Callable, Sequence

from ..cost import freed_parameters
from ..encoder import EncoderCore
from ..towers import Unit
from ._greedy import cheapest_first
from ._loss import Loss
from ._meter import Meter


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
    """Units in the order of removal, the least loss per freed parameter first, until ``budget`` parameters are freed."""
    # An MLP's neuron groups go in their given order. With a block go its heads and neurons that are left, right behind
    # it in the path at the block's own loss; what went before it counts as freed already. ``lazy`` as in
    # :func:`greedy_path`.
    sizes = {unit: freed_parameters(encoder, unit) for unit in units}
    return cheapest_first(meter, sizes, lazy=lazy, budget=budget, evaluated=evaluated, removed=removed)
