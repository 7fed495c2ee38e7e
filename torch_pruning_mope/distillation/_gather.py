"""Embeddings of all ranks on every rank, with gradients, so that a loss sees the whole batch.

Every collective's backward is its adjoint: a rank's gradient is that of the *sum* of what all ranks backpropagate.
``torch.distributed.nn.functional`` is deprecated as of torch 2.14, and takes only equal numbers of rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import Function, once_differentiable


@dataclass(frozen=True, eq=False)
class Rows:
    """Normalised embeddings: this rank's, all ranks' in order, and the position of this rank's first among all."""

    own: Float[Tensor, "n J"]
    all: Float[Tensor, "N J"]
    start: int

    @property
    def places(self) -> Int[Tensor, "n"]:
        """Positions of this rank's rows among all."""
        return torch.arange(self.start, self.start + len(self.own), device=self.own.device)


def is_alone() -> bool:
    """True if no other rank takes part."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1


def row_counts(tensor: Float[Tensor, "n J"], name: str) -> list[int]:
    """Every rank's number of rows; ValueError on all ranks alike if none has any, or widths differ."""
    shapes = torch.tensor([tensor.shape], device=tensor.device)
    if not is_alone():
        everyone = [torch.empty_like(shapes) for _ in range(dist.get_world_size())]
        dist.all_gather(everyone, shapes)
        shapes = torch.cat(everyone)
    rows, widths = shapes.T.tolist()
    if len(set(widths)) > 1:
        raise ValueError(
            f"{name} must have the same embedding size on all ranks; found {widths}. Load the same model on each."
        )
    if sum(rows) == 0:
        raise ValueError(
            f"{name} must hold at least one embedding, on some rank; found none. Skip batches that are empty everywhere."
        )
    return list(map(int, rows))


def wide(tensor: Float[Tensor, "*S"]) -> Float[Tensor, "*S"]:
    """The tensor in float32 at least."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def unit(embeddings: Float[Tensor, "n J"]) -> Float[Tensor, "n J"]:
    """Normalised embeddings, in float32 at least."""
    return F.normalize(wide(embeddings), dim=-1)


def gathered(embeddings: Float[Tensor, "n J"], name: str) -> Rows:
    """Normalises embeddings and gathers those of all ranks, which may hold different numbers of rows, and none."""
    own = unit(embeddings)
    counts = row_counts(own, name)
    if is_alone():
        return Rows(own, own, 0)
    everyone: Tensor = _Gather.apply(own, counts)
    return Rows(own, everyone, sum(counts[: dist.get_rank()]))


def summed(shares: Float[Tensor, "*T"]) -> Float[Tensor, "*T"]:
    """Sum of all ranks' shares of some losses, on every rank."""
    return shares if is_alone() else _Sum.apply(shares)


def total(numbers: Int[Tensor, "T"]) -> Int[Tensor, "T"]:
    """Sum of all ranks' numbers, on every rank, without gradient or waiting for the device."""
    if not is_alone():
        numbers = numbers.clone()
        dist.all_reduce(numbers)
    return numbers


class _Gather(Function):
    """Rows of all ranks, in order. Backward: the sum of all ranks' gradients of this rank's rows."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, counts: Sequence[int]) -> Tensor:
        ctx.rows = len(own)
        ctx.start = sum(counts[: dist.get_rank()])
        padded = own.new_zeros(max(counts), own.shape[1])  # collectives take equal shapes
        padded[: len(own)] = own
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        everyone = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(everyone)  # gloo has no reduce-scatter on every version
        return everyone[ctx.start : ctx.start + ctx.rows], None


class _Sum(Function):
    """The sum over ranks. Backward: the sum of their gradients."""

    @staticmethod
    def forward(_ctx: Any, share: Tensor) -> Tensor:
        everyone = share.clone()
        dist.all_reduce(everyone)
        return everyone

    @staticmethod
    @once_differentiable
    def backward(_ctx: Any, gradient: Tensor) -> Tensor:
        everyone = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(everyone)
        return everyone
