"""The prunable part of a module: channels between the layers that make them and the layer that takes them."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Prunable(ABC):
    """Heads or neurons: channels that ``sources`` make and ``output`` alone takes, ``unit_size`` of them per unit.

    Taking a unit away is taking its channels out of the input of ``output``, wherever nothing in between mixes channels.
    """

    @property
    @abstractmethod
    def sources(self) -> Sequence[nn.Module]:
        """The layers whose output channels are the units' channels: q, k and v, or the first layer(s) of an MLP."""

    @property
    @abstractmethod
    def output(self) -> nn.Linear | nn.Conv2d:
        """The layer whose input channels are the units' channels."""

    @property
    @abstractmethod
    def unit_size(self) -> int:
        """Channels per unit: the head dimension, or 1 for neurons."""

    @property
    def can_be_empty(self) -> bool:
        """True if the model still runs when all units have gone, the layers around them having no width."""
        return isinstance(self.output, nn.Linear)

    @property
    def channels(self) -> int:
        """Channels of all units."""
        output = self.output
        return output.in_channels if isinstance(output, nn.Conv2d) else output.in_features

    @property
    def num_units(self) -> int:
        """Number of heads or neurons left."""
        return self.channels // self.unit_size

    def mask(self, gone: Sequence[int]) -> Tensor:
        """The factors of the input of ``output`` that take channels away, ``[C]``, or ``[C, 1, 1]`` for maps."""
        weight = self.output.weight
        keep = torch.ones(self.channels, device=weight.device, dtype=weight.dtype)
        keep[list(gone)] = 0
        return keep[:, None, None] if isinstance(self.output, nn.Conv2d) else keep


class Channels(Prunable):
    """Heads or neurons, named by the layers around them."""

    def __init__(
        self, sources: Sequence[nn.Module], output: nn.Module, unit_size: int = 1, *, can_be_empty: bool | None = None
    ) -> None:
        if not isinstance(output, nn.Linear | nn.Conv2d):
            raise TypeError(f"output must be an nn.Linear or nn.Conv2d; found {type(output).__name__}.")
        self._sources, self._output, self._unit_size = tuple(sources), output, unit_size
        self._can_be_empty = can_be_empty

    @property
    def can_be_empty(self) -> bool:
        """As given, or a matter of the output layer's type."""
        return super().can_be_empty if self._can_be_empty is None else self._can_be_empty

    @property
    def sources(self) -> Sequence[nn.Module]:
        """The layers that make the units."""
        return self._sources

    @property
    def output(self) -> nn.Linear | nn.Conv2d:
        """The layer that takes them."""
        return self._output

    @property
    def unit_size(self) -> int:
        """Channels per unit."""
        return self._unit_size
