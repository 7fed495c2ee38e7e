"""Rows that output layers multiply with their weights, and those among them that can reach the embedding."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from .._state import hooked


class Reaching(NamedTuple):
    """Inputs of a layer, a row per row of its output, and which rows the embedding depends on."""

    inputs: Float[Tensor, "R U"]
    mask: Bool[Tensor, " R"]


def rows(layer: nn.Module, value: Tensor) -> Float[Tensor, "R D"]:
    """Output channels of a layer last, everything else first."""
    if isinstance(layer, nn.Conv2d) and value.ndim == 4:
        value = value.permute(0, 2, 3, 1)
    return value.flatten(0, -2)


def patches(layer: nn.Module, value: Tensor) -> Float[Tensor, "R U"]:
    """The input of a layer as it is multiplied with the weight, a row per row of the output."""
    if not isinstance(layer, nn.Conv2d):
        return value.flatten(0, -2)
    if layer.kernel_size == (1, 1) and layer.stride == (1, 1) and not any(layer._reversed_padding_repeated_twice):
        return value.permute(0, 2, 3, 1).flatten(0, -2)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = nn.functional.pad(value, layer._reversed_padding_repeated_twice, mode=mode)
    found = nn.functional.unfold(padded, layer.kernel_size, layer.dilation, 0, layer.stride)
    return found.mT.flatten(0, 1)


def reaching_rows(
    encode: Callable[[Tensor], Tensor], layers: Sequence[nn.Module], inputs: Tensor
) -> dict[nn.Module, Reaching]:
    """Runs an encoder and finds, by the gradient of the embeddings, the rows of each layer that can reach them."""
    # Captions after their end cannot, nor can tokens other than the pooled one in the last block.
    seen: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {layer: [] for layer in layers}

    def left(module: nn.Module, args: tuple[Any, ...], _kwargs: Any, output: Tensor) -> Tensor:
        zero = torch.zeros_like(output, requires_grad=True)
        seen[module].append((patches(module, args[0].detach()), zero))
        return output + zero

    with torch.inference_mode(False), torch.enable_grad(), hooked(seen, left):
        embeddings = encode(inputs.clone() if inputs.is_inference() else inputs)
        generator = torch.Generator().manual_seed(0)
        weights = torch.randn(embeddings.shape, generator=generator).to(embeddings)
        zeros = [zero for calls in seen.values() for _, zero in calls]
        found: Sequence[Tensor | None] = [None] * len(zeros)
        if embeddings.requires_grad:
            found = torch.autograd.grad((embeddings * weights).sum(), zeros, allow_unused=True)
    gradients = dict(zip(map(id, zeros), found, strict=True))
    reached = {}
    for layer, calls in seen.items():
        if calls:
            gradient = [gradients[id(zero)] for _, zero in calls]
            parts = [
                rows(layer, torch.full_like(zero, embeddings.requires_grad is False) if g is None else g)
                for (_, zero), g in zip(calls, gradient, strict=True)
            ]
            mask = torch.cat([part.ne(0).any(-1) for part in parts])
            reached[layer] = Reaching(torch.cat([hidden for hidden, _ in calls]), mask)
    return reached
