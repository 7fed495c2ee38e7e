"""Which tokens can reach the embedding: those up to a caption's end, the pooled one alone in the last block."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ._layers import Refit
from ._site import rows
from ._source import Chunk
from ._steps import HookSteps, Steps

Rows = dict[Refit, Tensor | None]


class Reach:
    """Rows of each layer's output, ``[R]``, that can reach the embedding, chunk by chunk.

    Towers that are taken apart say so; of others, the embedding's gradient tells.

    Args:
        steps: The student's tower.
        refits: All its layers that are refitted.
    """

    def __init__(self, steps: Steps, refits: Sequence[Refit]) -> None:
        self._steps, self._refits = steps, refits
        self._known: dict[int, Rows] = {}
        self._like: dict[torch.Size, list[Rows]] = {}

    def known(self, number: int) -> Rows:
        """Of a chunk that has been asked for before."""
        return self._known[number]

    def of(self, chunk: Chunk) -> Rows:
        """Of a chunk."""
        if chunk.number not in self._known:
            self._known[chunk.number] = self._find(chunk.inputs)
        return self._known[chunk.number]

    def _find(self, inputs: Tensor) -> Rows:
        if not isinstance(self._steps, HookSteps):
            lengths = self._steps.view.lengths(inputs)
            if lengths is None:
                return dict.fromkeys(self._refits)
            mask = (torch.arange(inputs.shape[1], device=lengths.device) < lengths[:, None]).flatten()
            return dict.fromkeys(self._refits, mask.to(self._steps.encoder.device))
        like = self._like.setdefault(inputs.shape, [])
        # Positions of images are alike: two chunks that agree speak for all of their shape.
        if (
            inputs.is_floating_point()
            and len(like) == 2
            and all(_equal(*(rows_[r] for rows_ in like)) for r in self._refits)
        ):
            return like[0]
        found = _by_gradient(self._steps, self._refits, inputs)
        if len(like) < 2:
            like.append(found)
        return found


def _equal(a: Tensor | None, b: Tensor | None) -> bool:
    return a is b or (a is not None and b is not None and torch.equal(a, b))


def _by_gradient(steps: Steps, refits: Sequence[Refit], inputs: Tensor) -> Rows:
    """Rows of which the embedding has a gradient that is not zero."""
    zeros: dict[nn.Module, list[Tensor]] = {refit.layer: [] for refit in refits}

    def left(module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        zeros[module].append(torch.zeros_like(output, requires_grad=True))
        return output + zeros[module][-1]

    handles = [layer.register_forward_hook(left) for layer in zeros]
    try:
        with torch.enable_grad():
            embeddings = steps.encoder.embed(steps.tower, inputs)
            generator = torch.Generator().manual_seed(0)
            weights = torch.randn(embeddings.shape, generator=generator).to(embeddings)
            flat = [zero for own in zeros.values() for zero in own]
            found = torch.autograd.grad((embeddings * weights).sum(), flat, allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
    gradients = dict(zip(map(id, flat), found, strict=True))
    result: Rows = {}
    for refit in refits:
        parts = [(zero, gradients[id(zero)]) for zero in zeros[refit.layer]]
        masks = [rows(refit.layer, zero if gradient is None else gradient).ne(0).any(-1) for zero, gradient in parts]
        mask = torch.cat(masks) if masks else None
        result[refit] = None if mask is None or bool(mask.all()) else mask
    return result
