"""A tower as a chain of sub-layers, which can be entered and left anywhere.

Axes as in ``towers``; ``K`` ablations run as one batch of ``K * n`` sequences, where ``n`` inputs form a chunk.
"""

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import linear

from .._ridge import unstacked
from ..encoder import TowerName
from ..towers import Stream, Sublayer, Tower
from ._ablate import Ablator
from ._refit import Place
from ._units import Ablation

Refit = tuple[Tensor, Tensor | None]
"""Weight and bias of an output layer."""


class Point(NamedTuple):
    """A sub-layer in mid-computation: the stream it adds to, its channels, its output."""

    base: Any
    hidden: Tensor
    out: Tensor


class StreamWalk:
    """A tower that is taken apart into stem, sub-layers and readout, some of whose units have been removed already.

    A chain of ``depths`` steps, ``per_block`` of each block, that can be entered at any of them.
    """

    def __init__(self, view: Tower, tower: TowerName, removed: Collection[Ablation], ablator: Ablator) -> None:
        self.tower = view
        self._name: TowerName = tower
        self._ablator = ablator
        blocks = list(view.blocks)
        last = max((layer for layer, block in enumerate(blocks) if block.is_in_parts), default=-1)
        self.sublayers: list[Sublayer] = [sublayer for block in blocks[: last + 1] for sublayer in block.sublayers]
        self.depths = len(self.sublayers)
        self.per_block = len(blocks[0].sublayers)
        self.last_mixing = max((d for d, sublayer in enumerate(self.sublayers) if sublayer.mixes_tokens), default=-1)
        self._keep: dict[int, Tensor] = {}
        self._refitted: dict[int, Refit] = {}
        self._removed: dict[int, list[Ablation]] = {}
        self._skipped: set[int] = set()
        self._at_end: list[Ablation] = []
        for ablation in removed:
            depth = self.depth(ablation)
            if depth == self.depths:
                self._at_end.append(ablation)
            elif ablation.part == "block":
                self._skipped.update(range(depth, depth + self.per_block))
            else:
                self._removed.setdefault(depth, []).append(ablation)
        for depth, gone in self._removed.items():
            self._remove(depth, gone)

    def _remove(self, depth: int, gone: Sequence[Ablation]) -> None:
        """Takes units of a sub-layer away: by a mask, or by weights that make up for them."""
        output, refits = self.sublayers[depth].output, self._ablator.refits
        if refits is not None and self._place(gone[0]) in refits:
            weights = refits.weights(self._place(gone[0]), [ablation.channels for ablation in gone])
            self._refitted[depth] = unstacked(output, weights)
            return
        keep = self._keep[depth] = torch.ones_like(output.weight[0])
        for ablation in gone:
            keep[list(ablation.channels)] = 0

    def _place(self, ablation: Ablation) -> Place:
        return self._name, ablation.layer, ablation.part

    def refitted(self, depth: int, ablation: Ablation) -> Refit | None:
        """Weights and bias of a sub-layer's output layer that make up for an ablation; None where it is not refitted."""
        refits = self._ablator.refits
        if depth == self.depths or refits is None or (place := self._place(ablation)) not in refits:
            return None
        held = [other.channels for other in self._removed.get(depth, ())]
        return unstacked(self.sublayers[depth].output, refits.weights(place, held, ablation.channels))

    def depth(self, ablation: Ablation) -> int:
        """Position of the (first) sub-layer that an ablation is in; the end for what runs with the readout, such as a pool."""
        second = ablation.part == "neurons" and self.per_block > 1
        return min(ablation.layer * self.per_block + second, self.depths)

    def lengths(self, inputs: Tensor) -> Tensor | None:
        """Tokens of each input up to its end; None where inputs run whole."""
        return self.tower.lengths(inputs)

    def stem(self, inputs: Tensor) -> Stream:
        """The stream that enters the first step."""
        return self.tower.stem(inputs)

    def tokens(self, stream: Any) -> int:
        """Tokens of a sequence."""
        return int(stream.x.shape[1])

    def kept(self, stream: Stream) -> Sequence[Tensor]:
        """The tensors that keeping a stream holds: hidden states, and outputs that wait for those after them."""
        return (stream.x, *stream.outs)

    def point(self, depth: int, stream: Stream) -> Point:
        """A sub-layer up to its output, narrowed to the pooled token where nothing later mixes tokens."""
        if depth == self.depths:
            nothing = stream.x.new_empty(0)
            return Point(stream, nothing, nothing)
        pooled_only = stream.pooled is not None and depth >= self.last_mixing
        hidden = self.sublayers[depth].hidden(stream, pooled_only=pooled_only)
        if depth in self._keep:
            hidden = hidden * self._keep[depth]
        output = self.sublayers[depth].output
        out = linear(hidden, *self._refitted[depth]) if depth in self._refitted else output(hidden)
        return Point(stream.narrow() if pooled_only else stream, hidden, out)

    def finish(self, depth: int, point: Point) -> Stream:
        """The stream after a sub-layer."""
        base: Stream = point.base
        return self.sublayers[depth].finish(base, point.out)

    def step(self, depth: int, stream: Stream) -> Stream:
        """The stream after a sub-layer, from the stream before it."""
        return stream if depth in self._skipped else self.finish(depth, self.point(depth, stream))

    def run(self, depth: int, stream: Stream) -> Float[Tensor, "N J"]:
        """From the stream before ``depth`` to the embeddings."""
        for later in range(depth, self.depths):
            stream = self.step(later, stream)
        return self._readout(stream)

    def _readout(self, stream: Stream, *more: Ablation) -> Float[Tensor, "N J"]:
        """The tower's, without units that run with it."""
        with self._ablator.without(self._name, [*self._at_end, *more]):
            return self.tower.readout(stream)

    def run_without(
        self, depth: int, point: Point, ablations: Sequence[Ablation], refitted: Sequence[Refit | None]
    ) -> Float[Tensor, "K n J"]:
        """The embeddings under each of some ablations of a step, as one batch, with refitted weights if given."""
        if depth == self.depths:
            return torch.stack([self._readout(point.base, ablation) for ablation in ablations])
        sublayer = self.sublayers[depth]
        outs = [
            _without(sublayer, point.hidden, point.out, ablation.channels)
            if own is None
            else linear(point.hidden, *own)
            for ablation, own in zip(ablations, refitted, strict=True)
        ]
        base: Stream = point.base
        many = base if len(outs) == 1 else base.repeat(len(outs))
        many = sublayer.finish(many, outs[0] if len(outs) == 1 else torch.cat(outs))
        embeddings: Tensor = self.run(depth + 1, many).unflatten(0, (len(outs), -1))
        return embeddings

    def run_past(self, depth: int, stream: Stream, ablation: Ablation) -> Float[Tensor, "n J"]:  # noqa: ARG002
        """The embeddings without the block that begins at a step."""
        return self.run(depth + self.per_block, stream)


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
