"""Putting a pruned model together: the base without weights, cut to what is left, and then the weights."""

from collections.abc import Callable, Mapping
from pathlib import Path
from reprlib import repr as short
from typing import Any

import torch
from torch import Tensor, nn

from .._io._tensors import read_tensors, tensor_shapes
from ..encoder import EncoderCore
from ..errors import ModelLoadError
from ..surgery import HeadProjection
from . import _base
from ._checkpoint import WEIGHTS, Checkpoint, check_digest
from ._meta import Buffers, build, check_size, probe_of, wrap
from ._spec import Spec, counts, note, numbers_of, spec_of

Wrapper = Callable[[nn.Module], EncoderCore]
Shapes = Mapping[str, tuple[int, ...]]


def assemble(checkpoint: Checkpoint, wrapper: Wrapper, model: nn.Module | None = None) -> EncoderCore:
    """Returns the encoder that was saved."""
    config = checkpoint.config
    weights = check_digest(checkpoint.folder, WEIGHTS, config.sha256)
    shapes = tensor_shapes(weights)
    buffers: Buffers | None = None
    encoder: EncoderCore
    if model is None:

        def base() -> nn.Module:
            return _base.build(checkpoint.base.description, checkpoint.folder)

        check_size(probe_of(base), sum(torch.Size(shape).numel() for shape in shapes.values()))
        encoder, buffers = wrap(build(base), wrapper)
    else:
        encoder = wrapper(model.eval())
    cut(encoder, config.towers, shapes)
    _set_heads(encoder.model, config.heads_left)
    if (found := counts(spec_of(encoder), config.towers)) != counts(config.towers):
        raise ModelLoadError(
            f"towers must have the heads, neurons and channels of the weights, {short(found)}; found "
            f"{short(counts(config.towers))}."
        )
    note(encoder, config.towers)
    if buffers is not None:
        buffers.put_back(encoder.model)
    _fill(encoder, config.buffers, weights)
    return encoder


def cut(encoder: EncoderCore, spec: Spec, shapes: Shapes) -> None:
    """Mutates an encoder of the base: removes layers, and gives the others their shapes."""
    there = {name: len(tower.blocks) for name, tower in encoder.towers.items()}
    said = {name: tower.layers_of_base for name, tower in spec.items()}
    if there != said:
        raise ModelLoadError(f"base must have the layers that towers says, {said}; found {there}.")
    for name, tower in spec.items():
        kept = {layer.number for layer in tower.layers}
        gone = [place for place, number in enumerate(encoder.block_numbers(name)) if number not in kept]
        if gone:
            encoder.remove_blocks(name, gone)
    _shrink(encoder.model, shapes)


def _shrink(model: nn.Module, shapes: Shapes) -> None:
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


def _set_heads(model: nn.Module, heads_left: Mapping[str, str]) -> None:
    """Mutates a model: value projections record which heads of the base are left."""
    projections = {name: module for name, module in model.named_modules() if isinstance(module, HeadProjection)}
    if projections.keys() != heads_left.keys():
        raise ModelLoadError(f"heads_left must be of {sorted(projections)}; found {sorted(heads_left)[:20]}.")
    for name, projection in projections.items():
        heads, before = numbers_of(heads_left[name]), len(projection.heads)
        if len(heads) * projection.head_dim != projection.out_features or any(head >= before for head in heads):
            raise ModelLoadError(f"heads_left must be of the {before} heads of {name}; found {short(heads)}.")
        projection.heads = torch.tensor(heads, dtype=torch.long)


def _fill(encoder: EncoderCore, buffers: Mapping[str, str], weights: Path) -> None:
    """Mutates the encoder's model: gives it the checkpoint's weights."""
    model: nn.Module = encoder.model
    state: dict[str, Tensor] = read_tensors(weights)
    # Kernels choose by alignment how they sum: weights that lie as torch lays them give the same bits as before.
    state = {name: tensor if tensor.data_ptr() % 64 == 0 else tensor.clone() for name, tensor in state.items()}
    try:
        model.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:  # about missing, unexpected and misshapen tensors
        raise ModelLoadError(f"{WEIGHTS} must hold the weights of its base; found: {str(error)[:500]}") from error
    there = {name: buffer for name, buffer in model.named_buffers() if name not in state}
    if unknown := buffers.keys() - there.keys():
        raise ModelLoadError(f"buffers must be of {sorted(there)[:8]}; found {sorted(unknown)[:8]}.")
    for name, dtype in buffers.items():
        owner, _, own = name.rpartition(".")
        model.get_submodule(owner)._buffers[own] = there[name].to(getattr(torch, dtype))
    left = [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if tensor.is_meta]
    if left:
        raise ModelLoadError(f"every tensor must have a value; found none for {left[:5]}.")
    _run(encoder)


def _run(encoder: EncoderCore) -> None:
    """Runs both towers once, which raises where layers do not fit each other."""
    inputs = encoder.example_inputs
    try:
        with torch.no_grad():
            encoder.embed("image", inputs["images"])
            encoder.embed("text", inputs["tokens"])
    except RuntimeError as error:
        if "not implemented for" not in str(error):  # half precision, which this processor may not compute with
            raise
