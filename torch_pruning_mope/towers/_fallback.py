"""A tower for an encoder of which no layer is of a known type."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch_pruning as tp
from torch import nn

from ..errors import UnsupportedModelError
from ._opaque import OpaqueTower
from ._prunable import Channels
from ._tower import Block


class ChannelsTower(OpaqueTower):
    """An encoder whose units are the channels that Torch-Pruning's dependency graph would cut together.

    Nothing is known of how such an encoder runs, so each ablation is a whole forward pass, and where channels are used in
    several places, of a copy from which they have been cut: exact, and slow.
    """

    def __init__(self, tower: OpaqueTower, groups: Sequence[Any], firm: Sequence[nn.Module]) -> None:
        vars(self).update(vars(tower))
        inside = self.own_modules()
        found = [units for group in groups if (units := _units(group, inside, set(firm))) is not None]
        if not found:
            raise UnsupportedModelError(
                f"an encoder must have layers of known types, or channels that can be cut; found neither in "
                f"{type(self.root).__qualname__}. Register its layers with torch_pruning_mope.register_channels."
            )
        self._units = found
        warnings.warn(
            f"No layer of {type(self.root).__qualname__} is of a known type. Its channels are taken as neurons, and scored "
            "by whole forward passes, which is exact and slow. torch_pruning_mope.register_channels makes layers known.",
            stacklevel=5,
        )

    @property
    def blocks(self) -> Sequence[Block]:
        """Each group of channels by itself."""
        return [Block(units.output, None, units) for units in self._units]

    @property
    def in_order(self) -> bool:
        """Not to be relied on."""
        return False

    @property
    def streams(self) -> Sequence[nn.Module]:
        """None: all channels are neurons here."""
        return ()


def _units(group: Any, inside: set[nn.Module], firm: set[nn.Module]) -> Channels | None:
    """The channels of a group, if all of it lies inside an encoder and can be cut."""
    makers: list[Any] = []
    takers: list[Any] = []
    for dep, _ in group:
        module = dep.target.module
        if not isinstance(module, nn.Linear | tp.ops.TORCH_CONV):
            continue
        if module not in inside or module in firm:
            return None
        (makers if dep.handler in _MAKES else takers).append(module)
    count = makers[0].weight.shape[0] if makers else 0
    fitting = [taker for taker in takers if taker.weight.shape[1] == count]
    return Channels(makers, fitting[0], can_be_empty=False) if fitting else None


_MAKES = {tp.prune_linear_out_channels, tp.prune_conv_out_channels, tp.prune_depthwise_conv_out_channels}
