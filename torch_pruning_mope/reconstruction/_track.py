"""Student and dense model walked through a tower in step, on one chunk of inputs."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..encoder import TowerName
from ..towers import Stream, patches, rows
from ._layers import Refit
from ._reach import Reach
from ._source import Chunk, Source
from ._steps import Seen, Steps, kept_tensors, stream_of, watched


class Track:
    """Both models' states on one chunk; the student's is brought up to a step once all before it are refitted."""

    def __init__(self, chunk: Chunk, student: Steps, dense: Steps, mates: dict[int, list[Refit]]) -> None:
        self.chunk = Chunk(chunk.number, chunk.held_out, chunk.inputs[:0])  # the states hold what they need
        self._student, self._dense, self._mates = student, dense, mates
        self._at = [0, 0]
        self._states = [student.start(chunk.inputs), dense.start(chunk.inputs)]
        self._targets: dict[Refit, tuple[Tensor, Tensor | None]] = {}

    @property
    def nbytes(self) -> int:
        """Bytes that it holds."""
        held = [tensor for state in self._states for tensor in kept_tensors(state)]
        return sum(tensor.nbytes for tensor in [*held, *(value for value, _ in self._targets.values())])

    def target(self, refit: Refit, count: int) -> Float[Tensor, "R D"]:
        """The dense stream after a layer, or the layer's own dense output, of the ``count`` tokens that the student has."""
        if refit not in self._targets:
            self._targets = {}  # those of steps before
            self._advance(1, self._dense, refit.dense_step)
            mates = self._mates[refit.dense_step]
            with watched(_watched(mates, dense=True)) as seen:
                after = self._dense.run(refit.dense_step, self._states[1])
            pooled = after.pooled if isinstance(after, Stream) else None
            for mate in mates:
                self._targets[mate] = _after(mate, mate.original, mate.owner, seen, after), pooled
            if refit.dense_step < self._dense.readout:
                self._at[1], self._states[1] = refit.dense_step + 1, after
        value, pooled = self._targets[refit]
        if pooled is not None and value.ndim == 3 and value.shape[:-1].numel() != count:
            value = Stream(value, None, pooled).narrow().x
        found = rows(refit.original, value)
        return found if refit.channels is None else found[:, refit.channels]

    def student(self, group: Sequence[Refit]) -> Iterator[tuple[Refit, Tensor, Tensor]]:
        """For each refit the layer's input ``[R, U]`` and what stands against the target ``[R, D]``."""
        step = group[0].step
        self._advance(0, self._student, step)
        with watched(_watched(group, dense=False)) as seen:
            after = self._student.run(step, self._states[0])
        for refit in group:
            hidden = [patches(refit.layer, value) for value in seen.inputs.get(refit.layer, ())]
            if hidden:
                value = _after(refit, refit.layer, refit.student_owner, seen, after)
                yield refit, torch.cat(hidden), rows(refit.layer, value)

    def embeddings(self) -> tuple[Tensor, Tensor]:
        """The student's and the dense model's."""
        self._targets = {}
        for which, steps in enumerate((self._student, self._dense)):
            self._advance(which, steps, steps.readout)
        student, dense = self._states
        return self._student.run(self._student.readout, student), self._dense.run(self._dense.readout, dense)

    def _advance(self, which: int, steps: Steps, step: int) -> None:
        while self._at[which] < step:
            self._states[which] = steps.run(self._at[which], self._states[which])
            self._at[which] += 1


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
    """The tracks of a tower, as many of them held as fit in memory; the others begin anew each time."""

    def __init__(
        self, source: Source, steps: Steps, size: int, start: Callable[[Chunk], Track], memory: int,
        mine: Callable[[int], bool], reach: Reach,
    ) -> None:  # fmt: skip
        self._source, self._steps, self._size, self._start = source, steps, size, start
        self._memory, self._mine, self._reach = memory, mine, reach
        self._held: dict[int, Track] = {}
        self._count: int | None = None
        self.inputs = 0
        """Number of inputs, known after the first pass."""

    @property
    def tower(self) -> TowerName:
        """The tower's name."""
        return self._steps.tower

    def __iter__(self) -> Iterator[tuple[Track, dict[Refit, Tensor | None]]]:
        if self._count is not None and len(self._held) == self._count:
            for number, track in self._held.items():
                yield track, self._reach.known(number)
            return
        count = self.inputs = 0
        for chunk in self._source.chunks(self.tower, self._steps.view, self._size):
            self.inputs += len(chunk.inputs)
            if not self._mine(chunk.number):
                continue
            count += 1
            held = self._held.pop(chunk.number, None)
            track = self._start(chunk) if held is None else held
            yield track, self._reach.of(chunk)
            if track.nbytes + sum(other.nbytes for other in self._held.values()) <= self._memory:
                self._held[chunk.number] = track
        self._count = count
