"""Published refits of layers that lost inputs, from one pass of the dense model: bias only, and a layer's own output.

FLAP (arXiv 2312.11983) adds the mean of what went to the bias. GRAIL (arXiv 2602.23795) and CORP (arXiv 2602.05243) fit the
layer's own dense output from the dense inputs that are left; here centred, with a bias, as CORP does.
"""

from typing import Any

import torch
from torch import Tensor

import torch_pruning_mope as mope
from torch_pruning_mope._ridge import Gram, stacked, unstacked
from torch_pruning_mope.surgery import noted_channels

RIDGE = 1e-3
"""Of the mean diagonal, as GRAIL has it."""
Sums = dict[tuple[str, int, str], Tensor]


@torch.no_grad()
def dense_sums(dense: mope.DualEncoder, pairs: mope.Pairs, batch: int = 50) -> Sums:
    """``[h 1]ᵀ[h 1]`` of the input of every output layer, over all image tokens and captions up to their end."""
    grams: dict[tuple[str, int, str], Gram] = {}
    masks: list[Tensor | None] = [None]
    handles = []
    for layer in dense.layers:
        for part in ("attention", "feed_forward"):
            output = getattr(layer.block, part).output
            key = (layer.tower, layer.index, part)
            grams[key] = Gram(output.in_features, 1)

            def take(_module: Any, args: tuple[Tensor, ...], key: tuple[str, int, str] = key) -> None:
                hidden = args[0] if masks[0] is None or args[0].ndim < 3 else args[0][masks[0]]
                hidden = hidden.reshape(-1, hidden.shape[-1])
                grams[key].add(hidden, hidden.new_zeros(len(hidden), 1))

            handles.append(output.register_forward_pre_hook(take))
    try:
        for images in pairs.images.split(batch):
            dense.embed("image", images)
        for tokens in pairs.tokens.split(batch):
            lengths = dense.text.lengths(tokens)
            masks[0] = torch.arange(tokens.shape[1]) < lengths[:, None]
            dense.embed("text", tokens)
    finally:
        for handle in handles:
            handle.remove()
    return {key: gram.inner for key, gram in grams.items()}


@torch.no_grad()
def refit(small: mope.DualEncoder, dense: mope.DualEncoder, sums: Sums, *, bias_only: bool) -> None:
    """Mutates the pruned model."""
    originals = {(layer.tower, layer.index): layer.block for layer in dense.layers}
    for tower in small.towers:
        numbers = small.block_numbers(tower)
        for number, block in zip(numbers, small.towers[tower].blocks, strict=True):
            for part in ("attention", "feed_forward"):
                own, other = getattr(block, part), getattr(originals[tower, number], part)
                if own is None or own.channels == other.channels:
                    continue
                kept = noted_channels(own.output, "in")
                if kept is None:
                    raise SystemExit(
                        "channels that are left must be noted; found none. Remove units with mope.remove_units."
                    )
                weights = fitted(sums[tower, number, part], stacked(other.output), kept, bias_only=bias_only)
                weight, bias = unstacked(own.output, weights)
                own.output.weight.copy_(weight)
                own.output.bias.copy_(bias)


def fitted(inner: Tensor, before: Tensor, kept: list[int], *, bias_only: bool) -> Tensor:
    """Weights of the channels that are left, the bias in the last row."""
    mean, rows = inner[-1, :-1] / inner[-1, -1], torch.tensor(kept, dtype=torch.long)
    covariance = inner[:-1, :-1] / inner[-1, -1] - mean[:, None] * mean
    if bias_only:
        weights = before[:-1][rows]
    else:
        own = covariance[rows][:, rows]
        own += RIDGE * own.diagonal().mean() * torch.eye(len(own), dtype=own.dtype)
        weights = torch.linalg.solve(own, covariance[rows] @ before[:-1])
    bias = before[-1] + mean @ before[:-1] - mean[rows] @ weights
    return torch.cat([weights, bias[None]])
