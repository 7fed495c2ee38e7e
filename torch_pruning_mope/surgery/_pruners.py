"""Surgery on layers whose own pruner in Torch-Pruning is wrong here, or takes no notes."""

from collections.abc import Sequence
from typing import Any

import torch_pruning as tp
from torch import nn
from torch_pruning.pruner import function

from ._attention import HeadProjection
from ._parts import SharedProjection
from ._record import RecordingPruner, recording_pruners


class _SortedLayerNormPruner(function.LayernormPruner):  # type: ignore[misc]
    """LayerNorm surgery that keeps channels in order.

    Torch-Pruning drops the result of ``keep_idxs.sort()``, so at large cuts the order of a Python set decides and weights
    end up permuted (trap G).
    """

    def prune_out_channels(self, layer: nn.LayerNorm, idxs: Sequence[int]) -> nn.LayerNorm:
        """Mutates ``layer``: removes the channels ``idxs``."""
        gone = set(idxs)
        keep = [index for index in range(layer.normalized_shape[-1]) if index not in gone]
        layer.normalized_shape = (*layer.normalized_shape[:-1], len(keep))
        if layer.elementwise_affine:
            layer.weight = self._prune_parameter_and_grad(layer.weight, keep, -1)
            if layer.bias is not None:
                layer.bias = self._prune_parameter_and_grad(layer.bias, keep, -1)
        return layer

    prune_in_channels = prune_out_channels


class _HeadProjectionPruner(function.LinearPruner):  # type: ignore[misc]
    """Surgery on a value projection that remembers which heads are left."""

    def prune_out_channels(self, layer: HeadProjection, idxs: Sequence[int]) -> HeadProjection:
        """Mutates ``layer``: removes the channels ``idxs``, of whole heads."""
        gone = set(idxs)
        layer.keep([channel for channel in range(layer.out_features) if channel not in gone])
        super().prune_out_channels(layer, list(idxs))
        return layer


class _SharedProjectionPruner(function.LinearPruner):  # type: ignore[misc]
    """Surgery on a projection that heads share, whose channels are numbered as the heads see them."""

    def __init__(self) -> None:
        super().__init__()
        self._recording = RecordingPruner()
        self.prune_in_channels = self._recording.prune_in_channels

    def prune_out_channels(self, layer: SharedProjection, idxs: Sequence[int]) -> SharedProjection:
        """Mutates ``layer``: removes what the heads see as the channels ``idxs``, those of whole groups."""
        self._recording.prune_out_channels(layer, layer.own_channels(idxs))
        return layer

    def get_out_channels(self, layer: SharedProjection) -> int:
        """As many as the heads see."""
        return layer.out_features * layer.sharing


class _UnboundedOutputPruner(tp.ops.OutputPruner):  # type: ignore[misc]
    """Graph outputs that claim no size.

    Torch-Pruning takes dimension 1 of an output for the channels of whatever group reaches it, and silently drops groups
    of as many channels or more: cuts of the residual width by more than the joint embedding (trap C).
    """

    def prune_out_channels(self, layer: nn.Module, idxs: Sequence[int]) -> nn.Module:  # noqa: ARG002
        """Nothing to prune in an output."""
        return layer

    prune_in_channels = prune_out_channels

    def get_in_channels(self, layer: nn.Module) -> None:
        """No size."""

    get_out_channels = get_in_channels


def customized_pruners(model: nn.Module) -> dict[type[nn.Module], Any]:
    """Fresh pruners for the layer types whose own pruner in Torch-Pruning is wrong here, or takes no notes."""
    norms = {type(module) for module in model.modules() if isinstance(module, nn.LayerNorm)}
    pruners: dict[type[nn.Module], Any] = recording_pruners(model)
    pruners |= dict.fromkeys(norms, _SortedLayerNormPruner())
    pruners[tp.ops._OutputOp] = _UnboundedOutputPruner()
    pruners[HeadProjection] = _HeadProjectionPruner()
    pruners[SharedProjection] = _SharedProjectionPruner()
    return pruners
