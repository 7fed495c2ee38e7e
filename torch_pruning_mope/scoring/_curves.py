"""Scores of the units on a path, from the losses along it."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def isotonic_pools(increments: Float[Tensor, "G"], sizes: Float[Tensor, "G"] | None = None) -> Int[Tensor, "G"]:
    """Pools of the isotonic (non-decreasing, weighted least-squares) fit of increments per size, by adjacent violators."""
    # Losses along a path are noisy, and need not grow. Spread over its pool, an increment does: a threshold on scores
    # per size then always cuts a prefix of the path. (Not in the paper, which removes units one at a time.)
    pools: list[tuple[float, float, int]] = []
    for value, size in zip(increments.tolist(), _sizes(increments, sizes).tolist(), strict=True):
        total, weight, count = value, size, 1
        while pools and pools[-1][0] / pools[-1][1] >= total / weight:
            before = pools.pop()
            total, weight, count = total + before[0], weight + before[1], count + before[2]
        pools.append((total, weight, count))
    return torch.repeat_interleave(torch.tensor([count for _, _, count in pools]))


def pooled(
    values: Float[Tensor, "G ..."], pools: Int[Tensor, "G"], sizes: Float[Tensor, "G"] | None = None
) -> Float[Tensor, "G ..."]:
    """Each pool's total, spread over its units by their sizes, which are equal by default."""
    weights = _sizes(values, sizes).to(values.dtype)
    count = int(pools.max()) + 1
    totals = values.new_zeros(count, *values.shape[1:]).index_add_(0, pools, values)
    shares = weights / weights.new_zeros(count).index_add_(0, pools, weights)[pools]
    return totals[pools] * shares.view(-1, *[1] * (values.ndim - 1))


def _sizes(values: Tensor, sizes: Tensor | None) -> Tensor:
    return torch.ones(len(values), dtype=torch.double) if sizes is None else sizes
