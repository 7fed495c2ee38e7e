"""A tower as a chain of steps that can be entered and left anywhere.

Axes as in ``towers``; ``K`` ablations run as one batch of ``K * n`` sequences, where ``n`` inputs form a chunk.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import linear

from .._ridge import unstacked
from ..encoder import EncoderCore, TowerName
from ..towers import Stream, Sublayer
from ._ablate import Ablator
from ._refit import Place
from ._units import Ablation

Refit = tuple[Tensor, Tensor | None]
"""Weight and bias of an output layer."""


class Point(NamedTuple):
    """A sub-layer in mid-computation: the stream it adds to, its channels, its output; of a layer, the stream before it."""

    base: Any
    hidden: Any = None
    out: Any = None


class Walk(ABC):
    """A tower of ``depths`` steps and, last, the readout; some of its units may have been removed already."""

    depths: int

    def __init__(
        self,
        encoder: EncoderCore,
        tower: TowerName,
        removed: Collection[Ablation] = (),
        ablator: Ablator | None = None,
    ) -> None:
        self.encoder, self.view, self._ablator = encoder, encoder.towers[tower], ablator
        self.tower: TowerName = tower
        self.blocks = list(self.view.blocks)
        self._gone = list(removed)

    @abstractmethod
    def step_of(self, layer: int, part: str) -> int:
        """The (first) step in which a part of a layer runs."""

    @abstractmethod
    def resumes(self, ablation: Ablation) -> int:
        """The first step that runs in full under an ablation."""

    def lengths(self, inputs: Tensor) -> Tensor | None:  # noqa: ARG002
        """Tokens of each input up to its end; None where inputs run whole."""
        return None

    @abstractmethod
    def stem(self, inputs: Tensor) -> Any:
        """The state that enters the first step."""

    @abstractmethod
    def step(self, depth: int, state: Any) -> Any:
        """The state after a step; the embeddings after the readout."""

    def run(self, depth: int, state: Any) -> Float[Tensor, "N J"]:
        """From the state before a step to the embeddings."""
        for later in range(depth, self.depths + 1):
            state = self.step(later, state)
        embeddings: Tensor = state
        return embeddings

    @abstractmethod
    def tokens(self, state: Any) -> int:
        """Tokens of a sequence, from the state that enters the first step."""

    @abstractmethod
    def kept(self, state: Any) -> Sequence[Tensor]:
        """The tensors that keeping a state holds, but for inputs."""

    def point(self, depth: int, state: Any) -> Point:  # noqa: ARG002
        """A step up to where ablations differ."""
        return Point(state)

    def finish(self, depth: int, point: Point) -> Any:
        """The state after a step, from a point in it."""
        return self.step(depth, point.base)

    @abstractmethod
    def ablated(self, depth: int, ablations: Sequence[Ablation]) -> Callable[[Point], Float[Tensor, "K n J"]]:
        """From a point of a step to the embeddings under each of some ablations there: one block, or units of one sub-layer."""

    def _without(self, *more: Ablation) -> AbstractContextManager[EncoderCore]:
        gone = [*self._gone, *more]
        return self._ablator.without(self.tower, gone) if self._ablator and gone else nullcontext(self.encoder)


class StreamWalk(Walk):
    """A tower that is taken apart: a step is a sub-layer, of the pooled token alone where no later one mixes tokens."""

    view: Any

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        last = max((layer for layer, block in enumerate(self.blocks) if block.is_in_parts), default=-1)
        inside = self.blocks[: last + 1]
        self.sublayers: list[Sublayer] = [sublayer for block in inside for sublayer in block.sublayers]
        self.depths = len(self.sublayers)
        self._starts = list(accumulate((len(block.sublayers) for block in inside), initial=0))
        self.last_mixing = max((d for d, sublayer in enumerate(self.sublayers) if sublayer.mixes_tokens), default=-1)
        self._keep: dict[int, Tensor] = {}
        self._refitted: dict[int, Refit] = {}
        self._removed: dict[int, list[Ablation]] = {}
        self._skipped: set[int] = set()
        removed, self._gone = self._gone, []  # from here on: those that run with the readout, such as a pool's
        for ablation in removed:
            depth = self.step_of(ablation.layer, ablation.part)
            if depth == self.depths:
                self._gone.append(ablation)
            elif ablation.part == "block":
                self._skipped.update(range(depth, self.resumes(ablation)))
            else:
                self._removed.setdefault(depth, []).append(ablation)
        for depth, gone in self._removed.items():
            self._remove(depth, gone)

    def _remove(self, depth: int, gone: Sequence[Ablation]) -> None:
        """Takes units of a sub-layer away: by a mask, or by weights that make up for them."""
        output, place = self.sublayers[depth].output, self._place(gone[0])
        if place is None:
            keep = self._keep[depth] = torch.ones_like(output.weight[0])
            for ablation in gone:
                keep[list(ablation.channels)] = 0
        else:
            weights = self._ablator.refits.weights(place, [ablation.channels for ablation in gone])  # type: ignore[union-attr]
            self._refitted[depth] = unstacked(output, weights)

    def _place(self, ablation: Ablation) -> Place | None:
        """The output layer of an ablation, if it is refitted."""
        place = self.tower, ablation.layer, ablation.part
        return place if self._ablator and self._ablator.refits and place in self._ablator.refits else None

    def _refit(self, depth: int, ablation: Ablation) -> Refit | None:
        """Weights and bias that make up for an ablation, and what has gone before; None where nothing is refitted."""
        place = self._place(ablation)
        if place is None:
            return None
        held = [other.channels for other in self._removed.get(depth, ())]
        weights = self._ablator.refits.weights(place, held, ablation.channels)  # type: ignore[union-attr]
        return unstacked(self.sublayers[depth].output, weights)

    def step_of(self, layer: int, part: str) -> int:
        if layer >= len(self._starts) - 1:
            return self.depths
        return self._starts[layer] + (part == "neurons" and self.blocks[layer].attention is not None)

    def resumes(self, ablation: Ablation) -> int:
        if ablation.part == "block":
            return self._starts[ablation.layer + 1]
        return min(self.step_of(ablation.layer, ablation.part) + 1, self.depths)

    def lengths(self, inputs: Tensor) -> Tensor | None:
        found: Tensor | None = self.view.lengths(inputs)
        return found

    def stem(self, inputs: Tensor) -> Stream:
        stream: Stream = self.view.stem(inputs.to(self.encoder.device))
        return stream

    def tokens(self, state: Stream) -> int:
        return int(state.x.shape[1])

    def kept(self, state: Stream) -> Sequence[Tensor]:
        return (state.x, *state.outs)

    def point(self, depth: int, state: Stream) -> Point:
        if depth == self.depths:
            return Point(state)
        pooled_only = state.pooled is not None and depth >= self.last_mixing
        hidden = self.sublayers[depth].hidden(state, pooled_only=pooled_only)
        if depth in self._keep:
            hidden = hidden * self._keep[depth]
        output = self.sublayers[depth].output
        out = linear(hidden, *self._refitted[depth]) if depth in self._refitted else output(hidden)
        return Point(state.narrow() if pooled_only else state, hidden, out)

    def finish(self, depth: int, point: Point) -> Stream:
        base: Stream = point.base
        return self.sublayers[depth].finish(base, point.out)

    def step(self, depth: int, state: Stream) -> Any:
        if depth == self.depths:
            return self._readout(state)
        return state if depth in self._skipped else self.finish(depth, self.point(depth, state))

    def _readout(self, stream: Stream, *more: Ablation) -> Float[Tensor, "N J"]:
        with self._without(*more):
            embeddings: Tensor = self.view.readout(stream)
        return embeddings

    def ablated(self, depth: int, ablations: Sequence[Ablation]) -> Callable[[Point], Float[Tensor, "K n J"]]:
        if ablations[0].part == "block":
            return lambda point: self.run(self.resumes(ablations[0]), point.base)[None]
        if depth == self.depths:
            return lambda point: torch.stack([self._readout(point.base, ablation) for ablation in ablations])
        sublayer, refits = self.sublayers[depth], [self._refit(depth, ablation) for ablation in ablations]

        def run(point: Point) -> Tensor:
            outs = [
                _without(sublayer, point.hidden, point.out, ablation.channels)
                if own is None
                else linear(point.hidden, *own)
                for ablation, own in zip(ablations, refits, strict=True)
            ]
            many: Stream = point.base if len(outs) == 1 else point.base.repeat(len(outs))
            many = sublayer.finish(many, outs[0] if len(outs) == 1 else torch.cat(outs))
            embeddings: Tensor = self.run(depth + 1, many).unflatten(0, (len(outs), -1))
            return embeddings

        return run


def _without(sublayer: Sublayer, hidden: Tensor, out: Tensor, channels: Sequence[int]) -> Float[Tensor, "n T D"]:
    """The sub-layer's output without some channels, by whichever of the two sides is smaller."""
    weight, bias = sublayer.output.weight, sublayer.output.bias
    gone = torch.tensor(channels, device=hidden.device)
    if 2 * len(channels) <= weight.shape[1]:
        rows = torch.addmm(out.flatten(0, -2), hidden[..., gone].flatten(0, -2), weight[:, gone].mT, alpha=-1)
        return rows.view_as(out)
    kept = torch.ones(weight.shape[1], dtype=torch.bool, device=hidden.device)
    kept[gone] = False
    return linear(hidden[..., kept], weight[:, kept], bias)
