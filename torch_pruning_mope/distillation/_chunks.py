"""The contrastive loss of a large batch with the memory of a small one (GradCache, arXiv 2101.06983)."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor

Chunk = TypeVar("Chunk")

_RandomState = tuple[Tensor, Tensor | None]


def chunked_backward(
    encode: Callable[[Chunk], Sequence[Tensor]],
    chunks: Sequence[Chunk],
    loss: Callable[..., Tensor],
    *,
    no_sync: Callable[[], AbstractContextManager[Any]] | None = None,
) -> Tensor:
    """Adds the gradients of a loss over all chunks to ``.grad``, with the graph of one chunk in memory at a time."""
    # All chunks are encoded without a graph; the loss is differentiated with respect to their outputs; then each chunk
    # is encoded again, with a graph, and backpropagates its part. Random numbers (dropout) are the same both times. The
    # gradients are those of ``loss`` on all chunks at once; encoding costs one more forward pass, and BatchNorm sees
    # each chunk twice.
    # Outputs ``[rows, ...]`` are concatenated; those without dimensions are averaged, weighted by the chunks' rows. So
    # a model may return its temperature (under DDP it must, or DDP does not see that parameter used), and a chunk its
    # own mean loss.
    chunks = list(chunks)
    if not chunks:
        raise ValueError("chunks must hold at least one; found none. Pass the parts that the batch was cut into.")
    sync = no_sync or nullcontext
    states: list[_RandomState] = []
    cached: list[list[Tensor]] = []
    with sync():
        for chunk in chunks:
            states.append(_random_state())
            with torch.no_grad():
                cached.append(_encoded(encode, chunk))
        shares = _shares(cached)
        whole = [_joined(parts, shares) for parts in zip(*cached, strict=True)]
        value = loss(*whole)
        if not value.requires_grad:
            raise ValueError(
                "loss must return a tensor that depends on what encode returned; found one without a graph. Do not detach it, "
                "nor call chunked_backward under no_grad."
            )
        value.backward()
    after = _random_state()
    try:
        for k, chunk in enumerate(chunks):
            with sync() if k < len(chunks) - 1 else nullcontext():
                _restore(states[k])
                _continue(cached[k], _encoded(encode, chunk), _gradients(whole, cached, shares, k))
    finally:
        _restore(after)
    return value.detach()


def _encoded(encode: Callable[[Chunk], Sequence[Tensor]], chunk: Chunk) -> list[Tensor]:
    # Autocast caches half-precision copies of weights; in older torch (pytorch#158232), one made without a graph is then
    # used with one too, and the weight gets no gradient.
    torch.clear_autocast_cache()
    outputs = list(encode(chunk))
    torch.clear_autocast_cache()
    return outputs


def _shares(cached: Sequence[Sequence[Tensor]]) -> list[float]:
    """Each chunk's share of the rows."""
    if not all(outputs and outputs[0].ndim for outputs in cached):
        raise ValueError(
            "encode must return tensors, the first with one row per example; found "
            f"{[tuple(output.shape) for output in cached[0]]}. Return embeddings first."
        )
    rows = [len(outputs[0]) for outputs in cached]
    return [count / max(1, sum(rows)) for count in rows]


def _joined(parts: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    """One kind of output of all chunks, detached."""
    if parts[0].ndim:
        whole = torch.cat(list(parts))
    else:
        whole = torch.stack([share * part for share, part in zip(shares, parts, strict=True)]).sum()
    return whole.detach().requires_grad_(whole.is_floating_point())


def _gradients(
    whole: Sequence[Tensor], cached: Sequence[Sequence[Tensor]], shares: Sequence[float], k: int
) -> list[Tensor | None]:
    """Gradient of the loss for each output of the k-th chunk; None where it does not depend on it."""
    gradients: list[Tensor | None] = []
    for kind, tensor in enumerate(whole):
        if tensor.grad is None or tensor.ndim == 0:
            gradients.append(None if tensor.grad is None else shares[k] * tensor.grad)
            continue
        start = sum(len(outputs[kind]) for outputs in cached[:k])
        gradients.append(tensor.grad[start : start + len(cached[k][kind])])
    return gradients


def _continue(first: Sequence[Tensor], outputs: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
    """Backpropagates from the outputs of one chunk into the weights."""
    shapes = [[tuple(output.shape) for output in found] for found in (first, outputs)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"encode must return the same for a chunk each time; found shapes {shapes[0]}, then {shapes[1]}. Cut the batch "
            "into chunks of tensors, not of iterators."
        )
    reached = [
        (output, gradient)
        for output, gradient in zip(outputs, gradients, strict=True)
        if output.requires_grad and gradient is not None
    ]
    if not reached:
        raise ValueError(
            "encode must return a tensor with a graph that the loss depends on; found none. Do not detach embeddings, and "
            "leave something to train."
        )
    torch.autograd.backward([output for output, _ in reached], [gradient for _, gradient in reached])


def _random_state() -> _RandomState:
    """States of the CPU's generator and of the current GPU's, if one is in use."""
    return torch.get_rng_state(), torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None


def _restore(state: _RandomState) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1])
