"""The exact ablation engine: the plain loop's results, without recomputing what an ablation cannot change.

An ablation in one sub-layer leaves everything before it as it was, so the residual streams before it are recorded once and
only what follows runs for each ablation. Inside the sub-layer the ablated channels' contribution is subtracted from the
recorded output. Captions are cut where nothing can reach the pooled token any more, and once no later sub-layer mixes
tokens only the pooled token is computed.

Axes as in ``towers``; ``K`` ablations run as one batch of ``K * n`` sequences, where ``n`` inputs form a chunk.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from .._state import evaluation_mode
from ..encoder import EncoderCore, TowerName
from ..towers import Tower
from ._ablate import Ablator
from ._memory import MemoryBudget, Recording, peak_bytes, resolve_memory, tokens_at_once
from ._ranks import Ranks
from ._replay import LayerWalk
from ._units import Ablation
from ._walk import Point, StreamWalk, Walk

Batch = Sequence[int]
"""Positions of ablations that run together."""


def default_batch_size(walk: Walk, inputs: Tensor, device: torch.device) -> int:
    """Sequences of average length that have a suitable number of tokens together."""
    lengths = walk.lengths(inputs)
    if lengths is None:
        with torch.inference_mode():
            tokens = float(walk.tokens(walk.stem(inputs[:1].to(device))))
    else:
        tokens = float(lengths.float().mean())
    return max(1, int(tokens_at_once(device) / tokens))


class PrefixEngine:
    """Evaluates ablations of a dual encoder, recording what they share."""

    def __init__(
        self,
        encoder: EncoderCore,
        *,
        batch_size: int | None = None,
        memory: int | str | None = None,
        dtype: torch.dtype | None = None,
        keep: bool = False,
        ablator: Ablator | None = None,
    ) -> None:
        self._encoder = encoder
        self._ablator = ablator or Ablator(encoder)
        self._device = encoder.device
        self._asked = batch_size
        self._memory = resolve_memory(memory, self._device)
        self._dtype = dtype
        self._keep = keep
        self._batch_sizes: dict[TowerName, int] = {}
        self._kept: dict[TowerName, tuple[frozenset[Ablation], Recording]] = {}
        self._budget = MemoryBudget(self._memory)
        self._workspace = 0

    def reserve(self, held: int, needed: int) -> None:
        """Leaves room for the caller: ``held`` bytes from now on, and ``needed`` while nothing runs here."""
        self._budget.left -= held
        self._set_aside(needed)

    def agree(self, ranks: Ranks) -> None:
        """Takes the smallest batch sizes of all ranks, whose free memory may differ: batches are shared out by number."""
        sizes = ranks.gather(self._batch_sizes)
        smallest = {tower: min(other[tower] for other in sizes) for tower in self._batch_sizes}
        if smallest != self._batch_sizes:
            self._batch_sizes = smallest
            for _, recording in self._kept.values():
                recording.release()
            self._kept.clear()

    def embeddings(self, tower: TowerName, inputs: Tensor, removed: Collection[Ablation] = ()) -> Float[Tensor, "N J"]:
        """The embeddings, not normalised, without the units in ``removed``, by the same path as :meth:`ablations`."""
        with self._running():
            recording = self._recording(tower, inputs, removed)
            walk, parts = recording.walk, []
            for chunk in range(len(recording)):
                # Where streams are kept: from the first that the removal has changed, recording those after it.
                depth = walk.depths if self._keep else 0
                parts.append(walk.run(depth, recording.stream(chunk, depth) if self._keep else recording.stem(chunk)))
            return recording.gather(parts)

    def ablations(
        self,
        tower: TowerName,
        inputs: Tensor,
        ablations: Sequence[Ablation],
        removed: Collection[Ablation] = (),
        only: Callable[[Batch], bool] = lambda _: True,
    ) -> Iterator[tuple[Batch, Float[Tensor, "K N J"]]]:
        """Embeddings under each ablation of a tower, and under those in ``removed``, which hold throughout."""
        # ``only`` is asked once about every batch whether to run it. Batches depend on nothing but the other arguments.
        with self._running():
            recording = self._recording(tower, inputs, removed)
            together = self._together(recording.walk, self._batch_sizes[tower], len(inputs))
            recording.fill()
        try:
            for depth, batch in _batches(recording.walk, ablations, together):
                if not only(batch):
                    continue
                chosen = [ablations[position] for position in batch]
                # Entered anew for every batch: a generator that is abandoned must not leave the model in eval mode.
                with self._running():
                    run, whole = recording.walk.ablated(depth, chosen), chosen[0].part == "block"
                    points = (
                        Point(recording.stream(chunk, depth)) if whole else recording.point(chunk, depth)
                        for chunk in range(len(recording))
                    )
                    result = recording.gather([run(point) for point in points])
                yield batch, result
        finally:
            if not self._keep:
                recording.release()

    @contextmanager
    def _running(self) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            stack.enter_context(evaluation_mode(self._encoder.model))
            if self._dtype is not None:
                stack.enter_context(torch.autocast(self._device.type, self._dtype))
            yield

    def walk(self, tower: TowerName, removed: Collection[Ablation] = ()) -> Walk:
        """The way through a tower: in its parts where it has such and masks are enough, else by the model's own code."""
        view = self._encoder.towers[tower]
        if isinstance(view, Tower) and self._ablator.is_masked(tower):
            return StreamWalk(self._encoder, tower, removed, self._ablator)
        return LayerWalk(self._encoder, tower, removed, self._ablator)

    @staticmethod
    def _together(walk: Walk, batch_size: int, inputs: int) -> int:
        """Ablations that are run as one batch, where one alone would leave it short."""
        return max(1, round(batch_size / inputs)) if isinstance(walk, StreamWalk) else 1

    def _recording(self, tower: TowerName, inputs: Tensor, removed: Collection[Ablation]) -> Recording:
        """A recording of these inputs; one that was kept, less what the change of ``removed`` has made stale."""
        walk, held = self.walk(tower, removed), frozenset(removed)
        before, recording = self._kept.get(tower, (held, None))
        if recording is None or recording.inputs is not inputs:
            if recording is not None:
                recording.release()
            if tower not in self._batch_sizes:
                self._batch_sizes[tower] = self._fit(walk, inputs)
            size = self._batch_sizes[tower]
            recording = Recording(walk, inputs, size, self._device, self._budget, keep=self._keep)
        elif before != held:
            recording.change(walk, min(walk.step_of(gone.layer, gone.part) for gone in before ^ held))
        if self._keep:
            self._kept[tower] = (held, recording)
        return recording

    def _fit(self, walk: Walk, inputs: Tensor) -> int:
        """The batch size, once the memory that a batch needs has been measured and set aside."""
        size = self._asked or default_batch_size(walk, inputs, self._device)
        while True:
            recording = Recording(walk, inputs, size, self._device, MemoryBudget(0), keep=False)
            together = self._together(walk, size, len(inputs))
            most = max(len(recording.rows[-1]), together * len(inputs) if size > len(inputs) else 0)
            needed = self._needed(recording) * most // len(recording.rows[-1])
            if needed <= self._budget.left + self._workspace:
                self._set_aside(needed)
                return size
            if self._asked or size == 1:
                raise ValueError(
                    f"memory must be at least {self._memory - self._budget.left - self._workspace + needed} bytes for "
                    f"batch_size={size}; found {self._memory}. Give more, or a smaller batch_size (None finds one)."
                )
            size //= 2

    def _needed(self, recording: Recording) -> int:
        """Bytes that the longest chunk needs at its peak, where nothing is recorded."""
        walk, longest = recording.walk, len(recording) - 1

        def ablate() -> Tensor:
            depths = walk.sublayers if isinstance(walk, StreamWalk) else []
            depth = next((d for d, sub in enumerate(depths) if not sub.mixes_tokens and sub.channels), None)
            if depth is None:
                return walk.run(0, recording.stem(longest))
            trial = Ablation("image", -1, "head", (0,))  # of which layer, the depth says
            return walk.ablated(depth, [trial])(recording.point(longest, depth))

        return peak_bytes(ablate, self._device)

    def _set_aside(self, workspace: int) -> None:
        """Keeps memory for the neediest step."""
        self._budget.left -= max(0, workspace - self._workspace)
        self._workspace = max(self._workspace, workspace)


def _batches(walk: Walk, ablations: Sequence[Ablation], together: int) -> Iterator[tuple[int, list[int]]]:
    """Positions of ablations at the same depth, ``together`` at a time, from the first depth to the last."""
    depths = [walk.step_of(ablation.layer, ablation.part) for ablation in ablations]
    for depth in sorted(set(depths)):
        here = [position for position, own in enumerate(depths) if own == depth]
        blocks = [position for position in here if ablations[position].part == "block"]
        for position in blocks:
            yield depth, [position]
        rest = [position for position in here if ablations[position].part != "block"]
        for start in range(0, len(rest), together):
            yield depth, rest[start : start + together]


class PlainEngine:
    """Evaluates ablations of a dual encoder one after another, each on the whole tower, with the model's own code."""

    def __init__(
        self,
        encoder: EncoderCore,
        *,
        batch_size: int | None = None,
        dtype: torch.dtype | None = None,
        ablator: Ablator | None = None,
    ) -> None:
        self._ablator = ablator or Ablator(encoder)
        self._batch_size = batch_size or (32 if encoder.device.type == "cpu" else 512)
        self._autocast = torch.autocast(encoder.device.type, dtype, enabled=dtype is not None)

    def embeddings(self, tower: TowerName, inputs: Tensor, removed: Collection[Ablation] = ()) -> Float[Tensor, "N J"]:
        """As in :class:`PrefixEngine`."""
        with (
            self._ablator.without(tower, removed) as encoder,
            torch.inference_mode(),
            evaluation_mode(encoder.model),
            self._autocast,
        ):
            return torch.cat([encoder.embed(tower, part) for part in inputs.split(self._batch_size)])

    def ablations(
        self,
        tower: TowerName,
        inputs: Tensor,
        ablations: Sequence[Ablation],
        removed: Collection[Ablation] = (),
        only: Callable[[Sequence[int]], bool] = lambda _: True,
    ) -> Iterator[tuple[Sequence[int], Float[Tensor, "K N J"]]]:
        """As in :class:`PrefixEngine`, one at a time in the given order."""
        for position, ablation in enumerate(ablations):
            if only([position]):
                yield [position], self.embeddings(tower, inputs, [*removed, ablation])[None]
