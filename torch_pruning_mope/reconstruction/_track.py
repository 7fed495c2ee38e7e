"""Student and dense model walked through a tower in step, on one chunk of inputs at a time."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..scoring import Ranks
from ..scoring._replay import LayerWalk
from ..scoring._walk import Walk
from ..towers import Stream, patches, reaching_rows, rows
from ._layers import Refit
from ._source import Chunk, Source
from ._watch import Seen, stream_of, watched

Rows = dict[Refit, Tensor | None]
"""Rows ``[R]`` of each layer's output that can reach the embedding; None for all."""


class Track:
    """Both models' states on one chunk; the student's is brought up to a step once all before it are refitted."""

    def __init__(self, chunk: Chunk, student: Walk, dense: Walk, mates: dict[int, list[Refit]]) -> None:
        self.chunk = Chunk(chunk.number, chunk.held_out, chunk.inputs[:0])  # the states hold what they need
        self._walks, self._mates = (student, dense), mates
        self._at = [0, 0]
        self._states = [walk.stem(chunk.inputs) for walk in self._walks]
        self._targets: dict[Refit, tuple[Tensor, Tensor | None]] = {}

    @property
    def nbytes(self) -> int:
        """Bytes that it holds."""
        held = [tensor for walk, state in zip(self._walks, self._states, strict=True) for tensor in walk.kept(state)]
        return sum(tensor.nbytes for tensor in [*held, *(value for value, _ in self._targets.values())])

    def target(self, refit: Refit, count: int) -> Float[Tensor, "R D"]:
        """The dense stream after a layer, or the layer's own dense output, of the ``count`` tokens that the student has."""
        if refit not in self._targets:
            self._targets = {}  # those of steps before
            dense, mates = self._walks[1], self._mates[refit.dense_step]
            with watched(_watched(mates, dense=True)) as seen:
                after = dense.step(refit.dense_step, self._state(1, refit.dense_step))
            pooled = after.pooled if isinstance(after, Stream) else None
            for mate in mates:
                self._targets[mate] = _after(mate, mate.original, mate.owner, seen, after), pooled
            if refit.dense_step < dense.depths:
                self._at[1], self._states[1] = refit.dense_step + 1, after
        value, pooled = self._targets[refit]
        if pooled is not None and value.ndim == 3 and value.shape[:-1].numel() != count:
            value = Stream(value, None, pooled).narrow().x
        found = rows(refit.original, value)
        return found if refit.channels is None else found[:, refit.channels]

    def student(self, group: Sequence[Refit]) -> Iterator[tuple[Refit, Tensor, Tensor]]:
        """For each refit the layer's input ``[R, U]`` and what stands against the target ``[R, D]``."""
        step = group[0].step
        state = self._state(0, step)
        with watched(_watched(group, dense=False)) as seen:
            after = self._walks[0].step(step, state)
        for refit in group:
            hidden = [patches(refit.layer, value) for value in seen.inputs.get(refit.layer, ())]
            if hidden:
                value = _after(refit, refit.layer, refit.student_owner, seen, after)
                yield refit, torch.cat(hidden), rows(refit.layer, value)

    def embeddings(self) -> tuple[Tensor, Tensor]:
        """The student's and the dense model's."""
        self._targets = {}
        student, dense = (walk.step(walk.depths, self._state(i, walk.depths)) for i, walk in enumerate(self._walks))
        return student, dense

    def _state(self, which: int, step: int) -> Any:
        """A model's state before a step."""
        while self._at[which] < step:
            self._states[which] = self._walks[which].step(self._at[which], self._states[which])
            self._at[which] += 1
        return self._states[which]


def _watched(refits: Sequence[Refit], *, dense: bool) -> list[nn.Module]:
    modules: list[nn.Module] = [refit.original if dense else refit.layer for refit in refits]
    sites = [
        (refit.owner if dense else refit.student_owner).get_submodule(refit.site.module)
        for refit in refits
        if refit.site is not None and refit.site.module is not None
    ]
    return modules + sites


def _after(refit: Refit, layer: nn.Module, owner: nn.Module, seen: Seen, after: Any) -> Tensor:
    """The stream at a refit's site, or the layer's own outputs, all calls one after another."""
    outs = seen.outputs.get(layer, [])
    if not outs:  # the target is the stream after later blocks, which have gone from the student
        return stream_of(after)
    if refit.site is None:
        return outs[0] if len(outs) == 1 else torch.cat([rows(layer, out) for out in outs])
    return refit.site.value(seen, owner, after, outs[0].shape)


class Tracks:
    """This rank's tracks of a tower, as many of them held as fit in memory; the others begin anew each time."""

    def __init__(
        self, source: Source, walk: Walk, size: int, memory: int, ranks: Ranks,
        start: Callable[[Chunk], Track], reach: Callable[[Chunk], Rows],
    ) -> None:  # fmt: skip
        self._chunks = partial(source.chunks, walk.tower, walk.view, size)
        self._memory, self._ranks, self._start, self._reach = memory, ranks, start, reach
        self._held: dict[int, Track] = {}
        self._count: int | None = None
        self.inputs = 0
        """Number of inputs, known after the first pass."""

    def __iter__(self) -> Iterator[tuple[Track, Rows]]:
        if self._count is not None and len(self._held) == self._count:
            yield from ((track, self._reach(track.chunk)) for track in self._held.values())
            return
        count = self.inputs = 0
        for chunk in self._chunks():
            self.inputs += len(chunk.inputs)
            if chunk.number % self._ranks.world != self._ranks.rank:
                continue
            count += 1
            track = self._held.pop(chunk.number, None) or self._start(chunk)
            yield track, self._reach(chunk)
            if track.nbytes + sum(other.nbytes for other in self._held.values()) <= self._memory:
                self._held[chunk.number] = track
        self._count = count


class Reach:
    """Tokens of each chunk that can reach the embedding: up to a caption's end, the pooled one alone in the last block.

    Towers that are taken apart report it; of others, the embedding's gradient does.
    """

    def __init__(self, walk: Walk, refits: Sequence[Refit]) -> None:
        self._walk, self._refits = walk, refits
        self._known: dict[int, Rows] = {}
        self._like: dict[torch.Size, list[Rows]] = {}

    def __call__(self, chunk: Chunk) -> Rows:
        if chunk.number not in self._known:
            self._known[chunk.number] = self._find(chunk.inputs)
        return self._known[chunk.number]

    def _find(self, inputs: Tensor) -> Rows:
        if not isinstance(self._walk, LayerWalk):
            lengths = self._walk.lengths(inputs)
            if lengths is None:
                return dict.fromkeys(self._refits)
            mask = (torch.arange(inputs.shape[1], device=lengths.device) < lengths[:, None]).flatten()
            return dict.fromkeys(self._refits, mask.to(self._walk.encoder.device))
        like = self._like.setdefault(inputs.shape, [])
        # Positions of images are alike: two chunks that agree speak for all of their shape.
        if inputs.is_floating_point() and len(like) == 2 and all(_equal(like[0][r], like[1][r]) for r in self._refits):
            return like[0]
        encode = partial(self._walk.encoder.embed, self._walk.tower)
        reached = reaching_rows(encode, [refit.layer for refit in self._refits], inputs)
        masks = {refit: reached[refit.layer].mask for refit in self._refits if refit.layer in reached}
        found = {r: None if r not in masks or bool(masks[r].all()) else masks[r] for r in self._refits}
        if len(like) < 2:
            like.append(found)
        return found


def _equal(a: Tensor | None, b: Tensor | None) -> bool:
    return a is b or (a is not None and b is not None and torch.equal(a, b))
