"""Tokens that can reach the embedding: those up to a caption's end, the pooled one alone in the last block."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from ..towers import reaching_rows
from ._layers import Refit
from ._source import Chunk
from ._steps import HookSteps, Steps

Rows = dict[Refit, Tensor | None]


class Reach:
    """Rows of each layer's output, ``[R]``, that can reach the embedding, chunk by chunk.

    Towers that are taken apart say so; of others, the embedding's gradient tells.
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
    reached = reaching_rows(partial(steps.encoder.embed, steps.tower), [refit.layer for refit in refits], inputs)
    masks = {refit: reached[refit.layer].mask for refit in refits if refit.layer in reached}
    return {refit: None if refit not in masks or bool(masks[refit].all()) else masks[refit] for refit in refits}
