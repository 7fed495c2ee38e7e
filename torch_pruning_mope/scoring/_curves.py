"""From the losses of nested neuron groups to a score for each group."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def isotonic_pools(increments: Float[Tensor, "G"]) -> Int[Tensor, "G"]:
    """Pools of the isotonic (non-decreasing, least-squares) fit, by pooling adjacent violators.

    Args:
        increments: One number per group.

    Returns:
        The pool each group falls into; within a pool the fit is the mean.
    """
    pools: list[tuple[float, int]] = []
    for value in increments.tolist():
        total, size = value, 1
        while pools and pools[-1][0] / pools[-1][1] >= total / size:
            before, count = pools.pop()
            total, size = total + before, size + count
        pools.append((total, size))
    return torch.repeat_interleave(torch.tensor([size for _, size in pools]))


def nested_scores(losses: Float[Tensor, "G"]) -> Float[Tensor, "G"]:
    """Scores of one layer's neuron groups from what the metric loses as they go one after another.

    The score of the k-th group is the isotonic fit of its increment, so that a threshold on scores always cuts a prefix of
    the order, and layers compare. (Not in the paper, which removes one group at a time; see the README for why.)

    Args:
        losses: The metric's loss without the first, the first two, … all groups.

    Returns:
        Non-decreasing scores that sum to the last loss.
    """
    increments = losses.diff(prepend=losses.new_zeros(1))
    return pooled(increments, isotonic_pools(increments))


def pooled(values: Float[Tensor, "G ..."], pools: Int[Tensor, "G"]) -> Float[Tensor, "G ..."]:
    """Each group's values replaced by the mean over its pool.

    Args:
        values: One row per group.
        pools: The pool of each group, counting from 0.

    Returns:
        The means.
    """
    count = int(pools.max()) + 1
    sums = values.new_zeros(count, *values.shape[1:]).index_add_(0, pools, values)
    sizes = torch.bincount(pools, minlength=count).to(values.dtype)
    return (sums / sizes.view(-1, *[1] * (values.ndim - 1)))[pools]
