"""Cutting a model of no weights to the shapes of those that it will get."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from ..errors import ModelLoadError

Shapes = Mapping[str, tuple[int, ...]]


def shrink(model: nn.Module, shapes: Shapes) -> None:
    """Mutates a model: parameters and buffers of other shapes than given become empty ones of these, and layers follow."""
    for prefix, module in model.named_modules():
        changed = False
        for table in (module._parameters, module._buffers):
            for name, tensor in table.items():
                full = f"{prefix}.{name}" if prefix else name
                shape = shapes.get(full)
                if tensor is None or shape is None or shape == tuple(tensor.shape):
                    continue
                if len(shape) != tensor.ndim or any(new > old for new, old in zip(shape, tensor.shape, strict=True)):
                    raise ModelLoadError(
                        f"{full} must be part of its base's {list(tensor.shape)}; found {list(shape)}: not a pruned form of "
                        "this base."
                    )
                empty = tensor.new_zeros(shape)  # on meta, unless a tower had to run
                if isinstance(tensor, nn.Parameter):
                    module._parameters[name] = nn.Parameter(empty, tensor.requires_grad)
                else:
                    module._buffers[name] = empty
                changed = True
        if changed:
            _set_channels(module, prefix)


def _set_channels(layer: Any, name: str) -> None:
    """Mutates a layer: sets its numbers of channels to those of its weight."""
    weight = getattr(layer, "weight", None)
    shape = () if weight is None else tuple(weight.shape)
    match layer:
        case nn.Linear():
            layer.out_features, layer.in_features = shape
        case nn.modules.conv._ConvNd():
            if layer.groups == layer.out_channels > 1 and layer.groups == layer.in_channels and not layer.transposed:
                layer.groups = layer.in_channels = layer.out_channels = shape[0]
            elif layer.groups == 1 and not layer.transposed:
                layer.out_channels, layer.in_channels = shape[:2]
            elif shape[:2] != (layer.out_channels, layer.in_channels // layer.groups):
                raise ModelLoadError(f"{name} must keep its channels, which are in groups; found {list(shape)}.")
        case nn.modules.batchnorm._BatchNorm():
            if shape:
                layer.num_features = shape[0]
            elif layer.running_mean is not None:
                layer.num_features = layer.running_mean.shape[0]
        case nn.LayerNorm():
            layer.normalized_shape = shape
        case nn.GroupNorm():
            layer.num_channels = shape[0]
        case nn.Embedding():
            if shape[0] != layer.num_embeddings:
                raise ModelLoadError(f"{name} must keep its {layer.num_embeddings} entries; found {shape[0]}.")
            layer.embedding_dim = shape[1]
        case nn.PReLU():
            layer.num_parameters = shape[0]
