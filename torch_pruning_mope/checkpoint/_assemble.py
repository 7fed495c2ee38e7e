"""Putting a pruned model together: the base without weights, cut to what is left, and then the weights."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..encoder import EncoderCore
from ..errors import ModelLoadError, MopeError
from ..surgery import HeadProjection
from . import _base
from ._checkpoint import Checkpoint
from ._files import CONFIG, WEIGHTS, inside
from ._meta import Buffers, build, wrap
from ._shrink import Shapes, shrink
from ._spec import Spec, note, sizes, spec_of

Wrapper = Callable[[nn.Module], EncoderCore]


def assemble(checkpoint: Checkpoint, wrapper: Wrapper, model: nn.Module | None = None) -> EncoderCore:
    """The encoder that was saved, but for its weights.

    Args:
        checkpoint: The checkpoint.
        wrapper: What wraps a model.
        model: Mutated if given: the base, for checkpoints of models that nobody else can build.

    Returns:
        The encoder.

    Raises:
        ModelLoadError: If what the checkpoint says is left is not what is.
    """
    with _said():
        encoder: EncoderCore
        buffers: Buffers | None = None
        if model is None:
            model = build(lambda: _base.build(checkpoint.base.description, checkpoint.folder))
            encoder, buffers = wrap(model, wrapper)
        else:
            encoder = wrapper(model.eval())
        cut(encoder, checkpoint.spec, checkpoint.shapes)
        _set_heads(encoder.model, checkpoint.heads_left)
        if sizes(spec_of(encoder)) != sizes(checkpoint.spec):
            raise ModelLoadError(
                "towers must be as wide as the tensors, found other numbers of heads, neurons or channels."
            )
        note(encoder, checkpoint.spec)
        if buffers is not None:
            buffers.put_back(encoder.model)
        return encoder


@contextmanager
def _said() -> Iterator[None]:
    """What libraries raise about a configuration that makes no sense, as one kind of error.

    Yields:
        Nothing.

    Raises:
        ModelLoadError: In place of the others.
    """
    try:
        yield
    except ModelLoadError:
        raise
    except MopeError as error:
        raise ModelLoadError(f"base must be a dual encoder that can be wrapped, found: {error}") from error
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        NotImplementedError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        raise ModelLoadError(
            f"{CONFIG} must describe a model that runs, found {type(error).__name__}: {str(error)[:300]}"
        ) from error


def _run(encoder: EncoderCore) -> None:
    """Runs both towers once, which raises where layers do not fit each other; on ``meta`` it would take far longer."""
    inputs = encoder.example_inputs
    try:
        with torch.no_grad():
            encoder.embed("image", inputs["images"])
            encoder.embed("text", inputs["tokens"])
    except RuntimeError as error:
        if "not implemented for" not in str(error):  # half precision, which this processor may not compute with
            raise


def cut(encoder: EncoderCore, spec: Spec, shapes: Shapes) -> None:
    """Mutates an encoder of the base: takes away layers, and gives the others their shapes.

    Args:
        encoder: The encoder.
        spec: Which layers are left.
        shapes: Shapes of what is left.

    Raises:
        ModelLoadError: If the base has other towers or layers.
    """
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


def _set_heads(model: nn.Module, heads_left: dict[str, list[int]]) -> None:
    """Mutates a model: values projections know which heads of the base are left.

    Raises:
        ModelLoadError: If they have others.
    """
    projections = {name: module for name, module in model.named_modules() if isinstance(module, HeadProjection)}
    if projections.keys() != heads_left.keys():
        raise ModelLoadError(f"heads_left must be of {sorted(projections)}, found {sorted(heads_left)[:20]}.")
    for name, projection in projections.items():
        heads, before = heads_left[name], len(projection.heads)
        if len(heads) * projection.head_dim != projection.out_features or any(head >= before for head in heads):
            raise ModelLoadError(f"heads_left must be of the {before} heads of {name}, found {heads!r:.80}.")
        projection.heads = torch.tensor(heads, dtype=torch.long)


def fill(encoder: EncoderCore, checkpoint: Checkpoint) -> None:
    """Mutates the encoder's model: gives it the checkpoint's weights.

    Args:
        encoder: From :func:`assemble`.
        checkpoint: The checkpoint.

    Raises:
        ModelLoadError: If tensors are missing, too many, or of other types or shapes than they should be.
    """
    state, model = _state(inside(checkpoint.folder, WEIGHTS), checkpoint), encoder.model
    try:
        model.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:  # what torch calls missing, unexpected and misshapen tensors
        raise ModelLoadError(f"{WEIGHTS} must hold the weights of its base, found: {str(error)[:500]}") from error
    there = {name: buffer for name, buffer in model.named_buffers() if name not in state and buffer.is_floating_point()}
    if checkpoint.buffers.keys() != there.keys():
        raise ModelLoadError(f"buffers must be {sorted(there)[:8]}, found {sorted(checkpoint.buffers)[:8]}.")
    for name, (dtype, shape) in checkpoint.buffers.items():
        owner, _, own = name.rpartition(".")
        if not dtype.is_floating_point or there[name].shape != shape:
            raise ModelLoadError(f"buffers must be those of the base, found {name[:80]!r} as {dtype} of {list(shape)}.")
        model.get_submodule(owner)._buffers[own] = there[name].to(dtype)
    left = [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if tensor.is_meta]
    if left:
        raise ModelLoadError(f"every tensor must have a value, found none for {left[:5]}.")
    with _said():
        _run(encoder)
    if (found := summary(encoder)) != checkpoint.summary:
        raise ModelLoadError(f"embedding must be {found} as the model is, found {str(checkpoint.summary)[:200]}.")


def summary(encoder: EncoderCore) -> dict[str, Any]:
    """What goes into a model, and how many parameters it has."""
    inputs = encoder.example_inputs
    return {
        "image": list(inputs["images"].shape[1:]),
        "context": inputs["tokens"].shape[1],
        "parameters": sum(parameter.numel() for parameter in encoder.model.parameters()),
    }


def _state(path: Path, checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The tensors.

    Returns:
        Each by name.

    Raises:
        ModelLoadError: If the file holds others than the checkpoint says.
    """
    try:
        state: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        raise ModelLoadError(f"{WEIGHTS} must be a file of safetensors, found: {str(error)[:300]}") from error
    found, said = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in state.items()}, checkpoint.tensors
    if found != said:
        differing = min(name for name in found.keys() | said.keys() if found.get(name) != said.get(name))
        raise ModelLoadError(
            f"{WEIGHTS} must hold the tensors that {CONFIG} lists, found others (first: {differing[:80]!r})."
        )
    # Kernels choose by alignment how they sum: weights that lie as torch lays them give the same bits as before.
    return {name: tensor if tensor.data_ptr() % 64 == 0 else tensor.clone() for name, tensor in state.items()}
