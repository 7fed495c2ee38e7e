"""The exact ablation engine: what the plain loop computes, without recomputing what an ablation cannot change.

An ablation in one sub-layer leaves everything before it as it was, so the residual streams before it are recorded once and
only what follows is run for each ablation. Inside the sub-layer the ablated channels' contribution is subtracted from the
recorded output. Captions are cut where nothing can reach the pooled token any more, and once no later sub-layer mixes
tokens only the pooled token is computed.

Axes as in ``towers``; ``K`` ablations run as one batch of ``K * n`` sequences, where ``n`` inputs form a chunk.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from .._state import evaluation_mode
from ..encoder import DualEncoder, TowerName
from ..towers import Stream, Sublayer, Tower
from ._memory import nbytes, peak_bytes, resolve_memory
from ._units import Ablation

Batch = Sequence[int]
"""Positions of ablations that run together."""


_TOKENS = {"cpu": 1536}
_TOKENS_ELSEWHERE = 32_768
"""Tokens run at once by default: on a CPU as many as stay in its cache, elsewhere enough to fill the device."""


def default_batch_size(tower: Tower, inputs: Tensor, device: torch.device) -> int:
    """Sequences to run at once.

    Args:
        tower: The tower.
        inputs: Its inputs.
        device: Where the model is.

    Returns:
        How many of average length have a suitable number of tokens.
    """
    lengths = tower.lengths(inputs)
    if lengths is None:
        with torch.inference_mode():
            tokens = float(tower.stem(inputs[:1].to(device)).x.shape[1])
    else:
        tokens = float(lengths.float().mean())
    return max(1, int(_TOKENS.get(device.type, _TOKENS_ELSEWHERE) / tokens))


class Point(NamedTuple):
    """A sub-layer in mid-computation: the stream it adds to, its channels, its output."""

    base: Stream
    hidden: Tensor
    out: Tensor


class Walk:
    """A tower as a chain of sub-layers, some of whose units have been removed already.

    Args:
        tower: The tower.
        removed: What contributes nothing from the start.
    """

    def __init__(self, tower: Tower, removed: Collection[Ablation]) -> None:
        self.tower = tower
        self.sublayers: list[Sublayer] = [sublayer for block in tower.blocks for sublayer in block.sublayers]
        self.per_block = len(tower.blocks[0].sublayers)
        self.last_mixing = max((d for d, sublayer in enumerate(self.sublayers) if sublayer.mixes_tokens), default=-1)
        self._keep: dict[int, Tensor] = {}
        self._skipped: set[int] = set()
        for ablation in removed:
            depth = self.depth(ablation)
            if ablation.kind == "block":
                self._skipped.update(range(depth, depth + self.per_block))
                continue
            weight = self.sublayers[depth].output.weight
            keep = self._keep.setdefault(depth, torch.ones_like(weight[0]))
            keep[list(ablation.channels)] = 0

    def depth(self, ablation: Ablation) -> int:
        """Position of the (first) sub-layer that an ablation is in."""
        return ablation.layer * self.per_block + (ablation.kind == "neurons")

    def point(self, depth: int, stream: Stream) -> Point:
        """A sub-layer up to its output, narrowed to the pooled token where nothing later mixes tokens."""
        pooled_only = stream.pooled is not None and depth >= self.last_mixing
        hidden = self.sublayers[depth].hidden(stream, pooled_only=pooled_only)
        if depth in self._keep:
            hidden = hidden * self._keep[depth]
        return Point(stream.narrow() if pooled_only else stream, hidden, self.sublayers[depth].output(hidden))

    def finish(self, depth: int, point: Point) -> Stream:
        """The stream after a sub-layer."""
        return point.base.with_x(self.sublayers[depth].finish(point.base.x, point.out))

    def step(self, depth: int, stream: Stream) -> Stream:
        """The stream after a sub-layer, from the stream before it."""
        return stream if depth in self._skipped else self.finish(depth, self.point(depth, stream))

    def run(self, depth: int, stream: Stream) -> Float[Tensor, "N J"]:
        """From the stream before ``depth`` to the embeddings."""
        for later in range(depth, len(self.sublayers)):
            stream = self.step(later, stream)
        return self.tower.readout(stream)

    def run_without(self, depth: int, point: Point, channels: Sequence[Sequence[int]]) -> Float[Tensor, "K n J"]:
        """The embeddings where a sub-layer lacks some channels, for ``K`` choices of them."""
        sublayer = self.sublayers[depth]
        outs = [_without(sublayer, point.hidden, point.out, gone) for gone in channels]
        many = point.base if len(outs) == 1 else point.base.repeat(len(outs))
        many = many.with_x(sublayer.finish(many.x, outs[0] if len(outs) == 1 else torch.cat(outs)))
        embeddings: Tensor = self.run(depth + 1, many).unflatten(0, (len(outs), -1))
        return embeddings


class _Budget:
    """Bytes that recordings may take."""

    def __init__(self, total: int) -> None:
        self.left = total

    def take(self, size: int) -> bool:
        """Reserves memory, if there is enough."""
        if size > self.left:
            return False
        self.left -= size
        return True

    def give(self, size: int) -> None:
        """Hands it back."""
        self.left += size


class _Recording:
    """The residual streams of one tower's inputs, and points at the depth under work, as far as the budget goes.

    What does not fit is computed again from the nearest stream before it, or from the inputs.

    Args:
        walk: The tower, with what is removed for now.
        inputs: Its inputs.
        batch_size: Inputs in a chunk.
        device: Where the model is.
        budget: Where memory is taken from.
        keep: Whether to keep the streams of all depths, for walks that go back; else of one depth per chunk.
    """

    def __init__(
        self, walk: Walk, inputs: Tensor, batch_size: int, device: torch.device, budget: _Budget, *, keep: bool
    ) -> None:
        self.walk = walk
        self.inputs = inputs
        self._device = device
        self._budget = budget
        self._keep = keep
        # Inputs of similar length together, each cut at its chunk's longest.
        self._lengths = walk.tower.lengths(inputs)
        order = torch.arange(len(inputs)) if self._lengths is None else self._lengths.cpu().argsort(stable=True)
        self.rows = order.tensor_split(-(-len(order) // batch_size))  # of nearly equal size
        self._streams: list[dict[int, Stream]] = [{} for _ in self.rows]
        self._points: dict[int, tuple[int, Point]] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def stem(self, chunk: int) -> Stream:
        """The stream that enters the first sub-layer."""
        rows = self.rows[chunk]
        if self._lengths is None:
            part = self.inputs[int(rows[0]) : int(rows[-1]) + 1]
        else:
            part = self.inputs[rows.to(self.inputs.device)]
            part = part[:, : int(self._lengths[rows.to(self._lengths.device)].max())]
        return self.walk.tower.stem(part.to(self._device))

    def fill(self) -> None:
        """Records the first streams of all chunks, before anything else takes the memory."""
        for chunk in range(len(self)):
            if not self._streams[chunk]:
                self._store(chunk, 0, self.stem(chunk))

    def stream(self, chunk: int, depth: int) -> Stream:
        """The stream before a sub-layer."""
        known = self._streams[chunk]
        start = max((d for d in known if d <= depth), default=None)
        stream = self.stem(chunk) if start is None else known[start]
        for d in range(start or 0, depth):
            at, point = self._points.get(chunk, (-1, None))
            stream = self.walk.finish(d, point) if at == d and point is not None else self.walk.step(d, stream)
            self._drop_point(chunk)
            if not self._keep:
                self._drop_stream(chunk, d)
            self._store(chunk, d + 1, stream)
        return stream

    def point(self, chunk: int, depth: int) -> Point:
        """A sub-layer up to its output."""
        at, point = self._points.get(chunk, (-1, None))
        if at == depth and point is not None:
            return point
        stream = self.stream(chunk, depth)
        self._drop_point(chunk)
        point = self.walk.point(depth, stream)
        if self._budget.take(nbytes(point.hidden, point.out)):
            self._points[chunk] = (depth, point)
        return point

    def change(self, walk: Walk, depth: int) -> None:
        """Goes on with another set of removed units, which differs from ``depth`` on."""
        self.walk = walk
        for chunk, known in enumerate(self._streams):
            self._drop_point(chunk)
            for later in [d for d in known if d > depth]:
                self._drop_stream(chunk, later)

    def release(self) -> None:
        """Forgets everything."""
        for chunk, known in enumerate(self._streams):
            self._drop_point(chunk)
            for depth in list(known):
                self._drop_stream(chunk, depth)

    def gather(self, parts: Sequence[Tensor]) -> Tensor:
        """Chunks' results ``[..., n, J]`` put back into the order of the inputs."""
        gathered = parts[0].new_empty(*parts[0].shape[:-2], len(self.inputs), parts[0].shape[-1])
        for rows, part in zip(self.rows, parts, strict=True):
            gathered[..., rows.to(part.device), :] = part
        return gathered

    def _store(self, chunk: int, depth: int, stream: Stream) -> None:
        stored = self._budget.take(nbytes(stream.x))
        if not stored and depth - 1 in self._streams[chunk]:  # rather the latest stream than the one before it
            self._drop_stream(chunk, depth - 1)
            stored = self._budget.take(nbytes(stream.x))
        if stored:
            self._streams[chunk][depth] = stream

    def _drop_stream(self, chunk: int, depth: int) -> None:
        if depth in self._streams[chunk]:
            self._budget.give(nbytes(self._streams[chunk].pop(depth).x))

    def _drop_point(self, chunk: int) -> None:
        if chunk in self._points:
            _, point = self._points.pop(chunk)
            self._budget.give(nbytes(point.hidden, point.out))


class PrefixEngine:
    """Evaluates ablations of a dual encoder, recording what they share.

    Args:
        encoder: The dual encoder; left as it is.
        batch_size: Sequences run at once; None for what suits the device, or fewer if memory is short.
        memory: What may be used besides the model and the pairs: bytes, a text like ``"4GiB"``, or None for half of what is
            free. With less of it more is computed again; the results are the same.
        dtype: Compute under autocast in this type, or None.
        keep: Whether to keep streams between calls, for calls whose ``removed`` grows (greedy scoring).

    Raises:
        ValueError: If ``memory`` is not understood.
    """

    def __init__(
        self,
        encoder: DualEncoder,
        *,
        batch_size: int | None = None,
        memory: int | str | None = None,
        dtype: torch.dtype | None = None,
        keep: bool = False,
    ) -> None:
        self._encoder = encoder
        self._device = encoder.device
        self._asked = batch_size
        self._memory = resolve_memory(memory, self._device)
        self._dtype = dtype
        self._keep = keep
        self._batch_sizes: dict[TowerName, int] = {}
        self._kept: dict[TowerName, tuple[frozenset[Ablation], _Recording]] = {}
        self._budget = _Budget(self._memory)
        self._workspace = 0

    def reserve(self, held: int, needed: int) -> None:
        """Leaves room for the caller.

        Args:
            held: Bytes that the caller holds from now on.
            needed: Bytes that it needs besides, now and then, while nothing runs here.
        """
        self._budget.left -= held
        self._set_aside(needed)

    def embeddings(self, tower: TowerName, inputs: Tensor, removed: Collection[Ablation] = ()) -> Float[Tensor, "N J"]:
        """The embeddings without further ablation, by the same path as :meth:`ablations`.

        Args:
            tower: Which tower.
            inputs: Its inputs.
            removed: Ablations of that tower that hold.

        Returns:
            The embeddings, not normalised.

        Raises:
            ValueError: If the memory does not suffice for one batch.
        """
        with self._running():
            recording = self._recording(tower, inputs, removed)
            walk, parts = recording.walk, []
            for chunk in range(len(recording)):
                if self._keep:  # from the first stream that the removal has changed, recording those after it
                    parts.append(walk.tower.readout(recording.stream(chunk, len(walk.sublayers))))
                else:
                    parts.append(walk.run(0, recording.stem(chunk)))
            return recording.gather(parts)

    def ablations(
        self,
        tower: TowerName,
        inputs: Tensor,
        ablations: Sequence[Ablation],
        removed: Collection[Ablation] = (),
        only: Callable[[Batch], bool] = lambda _: True,
    ) -> Iterator[tuple[Batch, Float[Tensor, "K N J"]]]:
        """Embeddings under each ablation.

        Args:
            tower: Which tower.
            inputs: Its inputs.
            ablations: Ablations of that tower.
            removed: Ablations of that tower that hold throughout, besides.
            only: Asked once about every batch whether to run it. Batches depend on nothing but the other arguments.

        Yields:
            Positions in ``ablations``, and their embeddings, not normalised. Every position comes at most once.

        Raises:
            ValueError: If the memory does not suffice for one batch.
        """
        with self._running():
            recording = self._recording(tower, inputs, removed)
            together = _together(self._batch_sizes[tower], len(inputs))
            recording.fill()
        try:
            for depth, batch in _batches(recording.walk, ablations, together):
                if not only(batch):
                    continue
                chosen = [ablations[position] for position in batch]
                # Entered anew for every batch: a generator that is abandoned must not leave the model in eval mode.
                with self._running():
                    parts = [_ablate(recording, chunk, depth, chosen) for chunk in range(len(recording))]
                    result = recording.gather(parts)
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

    def _recording(self, tower: TowerName, inputs: Tensor, removed: Collection[Ablation]) -> _Recording:
        """A recording of these inputs; one that was kept, less what the change of ``removed`` has made stale."""
        walk, held = Walk(self._encoder.towers[tower], removed), frozenset(removed)
        before, recording = self._kept.get(tower, (held, None))
        if recording is None or recording.inputs is not inputs:
            if recording is not None:
                recording.release()
            if tower not in self._batch_sizes:
                self._batch_sizes[tower] = self._fit(walk, inputs)
            size = self._batch_sizes[tower]
            recording = _Recording(walk, inputs, size, self._device, self._budget, keep=self._keep)
        elif before != held:
            recording.change(walk, min(walk.depth(ablation) for ablation in before ^ held))
        if self._keep:
            self._kept[tower] = (held, recording)
        return recording

    def _fit(self, walk: Walk, inputs: Tensor) -> int:
        """The batch size, once what a batch needs has been measured and set aside."""
        size = self._asked or default_batch_size(walk.tower, inputs, self._device)
        while True:
            recording = _Recording(walk, inputs, size, self._device, _Budget(0), keep=False)
            most = max(len(recording.rows[-1]), _together(size, len(inputs)) * len(inputs) if size > len(inputs) else 0)
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

    def _needed(self, recording: _Recording) -> int:
        """What the longest chunk needs at its peak, where nothing is recorded."""
        walk, longest = recording.walk, len(recording) - 1
        depth = next((d for d, sublayer in enumerate(walk.sublayers) if not sublayer.mixes_tokens), 0)

        def ablate() -> Tensor:
            return walk.run_without(depth, recording.point(longest, depth), [(0,)])

        return peak_bytes(ablate, self._device)

    def _set_aside(self, workspace: int) -> None:
        """Keeps what the neediest step needs."""
        self._budget.left -= max(0, workspace - self._workspace)
        self._workspace = max(self._workspace, workspace)


def _together(batch_size: int, inputs: int) -> int:
    """Ablations that are run as one batch, where one alone would leave it short."""
    return max(1, round(batch_size / inputs))


def _batches(walk: Walk, ablations: Sequence[Ablation], together: int) -> Iterator[tuple[int, list[int]]]:
    """Positions of ablations at the same depth, ``together`` at a time, from the first depth to the last."""
    depths = [walk.depth(ablation) for ablation in ablations]
    for depth in sorted(set(depths)):
        here = [position for position, own in enumerate(depths) if own == depth]
        blocks = [position for position in here if ablations[position].kind == "block"]
        for position in blocks:
            yield depth, [position]
        rest = [position for position in here if ablations[position].kind != "block"]
        for start in range(0, len(rest), together):
            yield depth, rest[start : start + together]


def _ablate(recording: _Recording, chunk: int, depth: int, batch: Sequence[Ablation]) -> Float[Tensor, "K n J"]:
    """One chunk's embeddings under each ablation of a batch."""
    walk = recording.walk
    if batch[0].kind == "block":
        return walk.run(depth + walk.per_block, recording.stream(chunk, depth))[None]
    return walk.run_without(depth, recording.point(chunk, depth), [ablation.channels for ablation in batch])


def _without(sublayer: Sublayer, hidden: Tensor, out: Tensor, channels: Sequence[int]) -> Float[Tensor, "n T D"]:
    """The sub-layer's output without some channels, by whichever of the two sides is smaller."""
    weight, bias = sublayer.output.weight, sublayer.output.bias
    gone = torch.tensor(channels, device=hidden.device)
    if 2 * len(channels) <= weight.shape[1]:
        rows = torch.addmm(out.flatten(0, 1), hidden[..., gone].flatten(0, 1), weight[:, gone].mT, alpha=-1)
        return rows.view_as(out)
    kept = torch.ones(weight.shape[1], dtype=torch.bool, device=hidden.device)
    kept[gone] = False
    return torch.nn.functional.linear(hidden[..., kept], weight[:, kept], bias)
