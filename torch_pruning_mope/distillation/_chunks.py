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
    no_sync: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Tensor:
    """Adds the gradients of a loss over all chunks to ``.grad``, with the graph of one chunk in memory at a time."""
    # All chunks are encoded without a graph; the loss is differentiated with respect to their outputs; then each chunk
    # is encoded again, with a graph, and backpropagates its part. Random numbers (dropout) are the same both times. The
    # gradients are those of ``loss`` on all chunks at once; encoding costs one more forward pass, and BatchNorm sees
    # each chunk twice.
    # Outputs ``[rows, ...]`` are concatenated; those without dimensions are averaged, weighted by the chunks' rows. So
    # a model may return its temperature (under DDP it must, or DDP does not see that parameter used), and a chunk its
    # own mean loss.
    states: list[_RandomState] = []
    cached: list[list[Tensor]] = []
    with no_sync():
        for chunk in chunks:
            states.append(_random_state())
            with torch.no_grad():
                cached.append(_encoded(encode, chunk))
        rows = [len(outputs[0]) for outputs in cached]
        shares = [count / max(1, sum(rows)) for count in rows]
        whole = [_joined(parts, shares) for parts in zip(*cached, strict=True)]
        value = loss(*whole)
        value.backward()
    after = _random_state()
    gradients = [_parts(tensor, parts, shares) for tensor, parts in zip(whole, zip(*cached, strict=True), strict=True)]
    try:
        for k, chunk in enumerate(chunks):
            with no_sync() if k < len(chunks) - 1 else nullcontext():
                _restore(states[k])
                outputs = _encoded(encode, chunk)
                reached = [
                    (output, own[k])
                    for output, own in zip(outputs, gradients, strict=True)
                    if output.requires_grad and own[k] is not None
                ]
                torch.autograd.backward([output for output, _ in reached], [gradient for _, gradient in reached])
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


def _joined(parts: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    """One kind of output of all chunks, detached."""
    if parts[0].ndim:
        whole = torch.cat(list(parts))
    else:
        whole = torch.stack([share * part for share, part in zip(shares, parts, strict=True)]).sum()
    return whole.detach().requires_grad_(whole.is_floating_point())


def _parts(whole: Tensor, parts: Sequence[Tensor], shares: Sequence[float]) -> Sequence[Tensor | None]:
    """Gradient of the loss for one kind of output of each chunk; None where it does not depend on it."""
    if whole.grad is None:
        return [None] * len(parts)
    return whole.grad.split([len(part) for part in parts]) if whole.ndim else [share * whole.grad for share in shares]


def _random_state() -> _RandomState:
    """States of the CPU's generator and of the current GPU's, if one is in use."""
    return torch.get_rng_state(), torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None


def _restore(state: _RandomState) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1])
