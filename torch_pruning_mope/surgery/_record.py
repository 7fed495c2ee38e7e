"""The original's channels that the layers of a pruned model have left."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch_pruning as tp
from torch import nn
from torch_pruning.pruner import function

from ._attention import HeadProjection
from ._parts import SharedProjection

Side = Literal["in", "out"]
_NAME = "channels_of_original"
"""A plain attribute of the layer, so that it goes where the layer goes, into copies too."""


class _Recorded:
    """One of Torch-Pruning's functions on linear layers, which also notes what is left.

    It equals the original, because criteria look up which function it is.
    """

    def __init__(self, original: Callable[..., Any], side: Side) -> None:
        self._original, self._side = original, side
        self.__self__ = original.__self__  # type: ignore[attr-defined]  # (a bound method, and used as one)
        self.__name__ = original.__name__

    def __eq__(self, other: object) -> bool:
        return bool(self._original == (other._original if isinstance(other, _Recorded) else other))

    def __hash__(self) -> int:
        return hash(self._original)

    def __call__(self, layer: nn.Linear, idxs: Sequence[int]) -> nn.Module:
        gone, left = set(idxs), noted_channels(layer, self._side)
        if left is None:
            left = list(range(layer.in_features if self._side == "in" else layer.out_features))
        record(layer, self._side, [number for place, number in enumerate(left) if place not in gone])
        pruned: nn.Module = self._original(layer, idxs)
        return pruned


class RecordingPruner:
    """Torch-Pruning's surgery on linear layers, with notes."""

    def __init__(self) -> None:
        self._stock: Any = function.PrunerBox[tp.ops.OPTYPE.LINEAR]
        self.prune_in_channels = _Recorded(self._stock.prune_in_channels, "in")
        self.prune_out_channels = _Recorded(self._stock.prune_out_channels, "out")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stock, name)


def recording_pruners(model: nn.Module) -> dict[type[nn.Module], Any]:
    """Pruners that note what is left, by the exact types of a model's linear layers."""
    kinds = {type(module) for module in model.modules() if isinstance(module, nn.Linear)}
    kinds -= {HeadProjection, SharedProjection}
    return dict.fromkeys(kinds, RecordingPruner())


def noted_channels(layer: nn.Module, side: Side) -> list[int] | None:
    """Returns the channels of a layer, as numbered in the original, that are left."""
    noted: list[int] | None = vars(layer).get(_NAME, {}).get(side)
    return noted


def record(layer: nn.Module, side: Side, channels: Iterable[int]) -> None:
    """Mutates a layer: notes which channels are left."""
    vars(layer)[_NAME] = {**vars(layer).get(_NAME, {}), side: list(channels)}
