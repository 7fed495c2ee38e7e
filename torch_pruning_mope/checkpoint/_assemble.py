"""Putting a pruned model together: the base without weights, cut to what is left, and then the weights."""

from collections.abc import Callable, Mapping
from pathlib import Path
from reprlib import repr as short

import torch
from torch import Tensor, nn

from .._io._tensors import read_tensors, tensor_shapes
from ..encoder import EncoderCore
from ..errors import ModelLoadError
from ..surgery import HeadProjection
from . import _base
from ._checkpoint import Checkpoint
from ._files import WEIGHTS, check_digest
from ._meta import Buffers, build, check_size, probe_of, wrap
from ._shrink import Shapes, shrink
from ._spec import Spec, counts, note, spec_of

Wrapper = Callable[[nn.Module], EncoderCore]


def assemble(checkpoint: Checkpoint, wrapper: Wrapper, model: nn.Module | None = None) -> EncoderCore:
    """Returns the encoder that was saved."""
    weights = check_digest(checkpoint.folder, WEIGHTS, checkpoint.sha256)
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
    cut(encoder, checkpoint.spec, shapes)
    _set_heads(encoder.model, checkpoint.heads_left)
    if (found := counts(spec_of(encoder))) != counts(checkpoint.spec):
        raise ModelLoadError(
            f"towers must have the heads, neurons and channels of the weights, {short(found)}; found "
            f"{short(counts(checkpoint.spec))}."
        )
    note(encoder, checkpoint.spec)
    if buffers is not None:
        buffers.put_back(encoder.model)
    _fill(encoder, checkpoint, weights)
    return encoder


def cut(encoder: EncoderCore, spec: Spec, shapes: Shapes) -> None:
    """Mutates an encoder of the base: removes layers, and gives the others their shapes."""
    there = {name: len(tower.blocks) for name, tower in encoder.towers.items()}
    said = {name: tower.of for name, tower in spec.items()}
    if there != said:
        raise ModelLoadError(f"base must have the layers that towers says, {said}; found {there}.")
    for name, tower in spec.items():
        kept = {layer.number for layer in tower.layers}
        gone = [place for place, number in enumerate(encoder.block_numbers(name)) if number not in kept]
        if gone:
            encoder.remove_blocks(name, gone)
    shrink(encoder.model, shapes)


def _set_heads(model: nn.Module, heads_left: Mapping[str, tuple[int, ...]]) -> None:
    """Mutates a model: value projections record which heads of the base are left."""
    projections = {name: module for name, module in model.named_modules() if isinstance(module, HeadProjection)}
    if projections.keys() != heads_left.keys():
        raise ModelLoadError(f"heads_left must be of {sorted(projections)}; found {sorted(heads_left)[:20]}.")
    for name, projection in projections.items():
        heads, before = heads_left[name], len(projection.heads)
        if len(heads) * projection.head_dim != projection.out_features or any(head >= before for head in heads):
            raise ModelLoadError(f"heads_left must be of the {before} heads of {name}; found {short(heads)}.")
        projection.heads = torch.tensor(heads, dtype=torch.long)


def _fill(encoder: EncoderCore, checkpoint: Checkpoint, weights: Path) -> None:
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
    if unknown := checkpoint.buffers.keys() - there.keys():
        raise ModelLoadError(f"buffers must be of {sorted(there)[:8]}; found {sorted(unknown)[:8]}.")
    for name, dtype in checkpoint.buffers.items():
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
