"""A walk through a tower that runs by the model's own code, resumed at one of its layers."""

from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from .._state import evaluation_mode
from ..encoder import EncoderCore, TowerName
from ..towers import OpaqueTower
from ..towers._resume import resume, shape_alone
from ._ablate import Ablator
from ._units import Ablation
from ._walk import Point, Refit, StreamWalk


@dataclass(frozen=True)
class Replay:
    """The state of a tower between two layers.

    Attributes:
        inputs: The tower's inputs.
        before: Outputs of the layers before, all but the last of them in shape alone.
    """

    inputs: Tensor
    before: tuple[Any, ...] = ()


class ReplayWalk:
    """A tower whose steps are its layers, run by the model's own code; otherwise as :class:`StreamWalk`."""

    per_block = 1

    def __init__(self, encoder: EncoderCore, tower: TowerName, removed: Collection[Ablation], ablator: Ablator) -> None:
        self._tower: TowerName = tower
        self._encoder = encoder
        self._removed = tuple(removed)
        self._ablator = ablator
        view = encoder.towers[tower]
        modules = _modules(encoder, tower)
        # Where layers run several times, or in no order that could be resumed, the whole tower is one step.
        self._in_order = not isinstance(view, OpaqueTower) or view.in_order
        self._steps = {block: modules.index(each.module) for block, each in enumerate(view.blocks)}
        self.depths = len(modules) if self._in_order else 0

    def depth(self, ablation: Ablation) -> int:
        """The layer that an ablation is in."""
        return self._steps[ablation.layer] if self._in_order else 0

    def lengths(self, inputs: Tensor) -> Tensor | None:  # noqa: ARG002
        """Inputs run as they are."""
        return None

    def stem(self, inputs: Tensor) -> Replay:
        """Nothing has run yet."""
        return Replay(inputs)

    def tokens(self, stream: Any) -> int:
        """Places of the first layer's output: tokens, or those of a map."""
        if not self.depths:
            return 1
        first = tree_leaves(self.step(0, stream).before[-1])[0]
        return int(first.shape[1] if first.ndim == 3 else first.shape[2:].numel())

    def kept(self, stream: Replay) -> Sequence[Tensor]:
        """Outputs of the last layer."""
        return [leaf for leaf in tree_leaves(stream.before[-1:]) if isinstance(leaf, Tensor)]

    def point(self, depth: int, stream: Replay) -> Point:  # noqa: ARG002
        """The stream: layers are not entered."""
        nothing = stream.inputs.new_empty(0)
        return Point(stream, nothing, nothing)

    def finish(self, depth: int, point: Point) -> Replay:
        """See :meth:`step`."""
        return self.step(depth, point.base)

    def step(self, depth: int, stream: Replay) -> Replay:
        """The stream after a layer."""
        return Replay(stream.inputs, (*map(shape_alone, stream.before), self._play(stream, stop=depth)))

    def run(self, depth: int, stream: Replay) -> Float[Tensor, "N J"]:  # noqa: ARG002 (the stream knows)
        """From the stream to the embeddings."""
        embeddings: Tensor = self._play(stream)
        return embeddings

    def refitted(self, depth: int, ablation: Ablation) -> Refit | None:  # noqa: ARG002
        """The ablator replaces weights."""
        return None

    def run_without(
        self,
        depth: int,  # noqa: ARG002
        point: Point,
        ablations: Sequence[Ablation],
        refitted: Sequence[Refit | None],  # noqa: ARG002
    ) -> Float[Tensor, "K n J"]:
        """One after another."""
        return torch.stack([self._play(point.base, ablation) for ablation in ablations])

    def run_past(self, depth: int, stream: Replay, ablation: Ablation) -> Float[Tensor, "n J"]:  # noqa: ARG002
        """The layer runs, and its output is replaced."""
        embeddings: Tensor = self._play(stream, ablation)
        return embeddings

    def _play(self, stream: Replay, *more: Ablation, stop: int | None = None) -> Any:
        """Runs the tower from the stream on; to the end, or to the output of a layer."""
        with ExitStack() as stack:
            # Physical removal makes parameters, which inference tensors cannot be in training later on.
            stack.enter_context(torch.inference_mode(False))
            encoder = stack.enter_context(self._ablator.without(self._tower, [*self._removed, *more]))
            stack.enter_context(torch.inference_mode())
            stack.enter_context(evaluation_mode(encoder.model))
            encode = partial(encoder.embed, self._tower)
            return resume(encode, stream.inputs, _modules(encoder, self._tower), stream.before, stop)


Walk = StreamWalk | ReplayWalk


def _modules(encoder: EncoderCore, tower: TowerName) -> list[nn.Module]:
    """The layers, each once."""
    return list(dict.fromkeys(block.module for block in encoder.towers[tower].blocks))
