"""Memory that scoring may use and needs, and recorded residual streams as far as it goes."""

import re
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ._walk import Point, Walk

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def resolve_memory(memory: int | str | None, device: torch.device) -> int:
    """Bytes of a budget: a number, a text like ``"4GiB"``, or None for half of what is free. Raises ValueError."""
    if memory is None:
        return free_memory(device) // 2
    if isinstance(memory, str) and (
        match := re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)i?B?\s*", memory, re.IGNORECASE)
    ):
        return int(float(match[1]) * _UNITS[match[2].upper()])
    if isinstance(memory, bool) or not isinstance(memory, int) or memory < 1:
        raise ValueError(f"memory must be a number of bytes or a text like '4GiB'; found {memory!r}.")
    return memory


def tokens_at_once(device: torch.device) -> int:
    """Tokens run at once by default: on a CPU as many as stay in its cache, elsewhere enough to fill the device."""
    return 1536 if device.type == "cpu" else 32_768


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a device now; 4 GiB where the system does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory()) - int(torch.mps.driver_allocated_memory())
    meminfo = Path("/proc/meminfo")
    if device.type == "cpu" and meminfo.exists():
        found = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo.read_text(encoding="utf-8"), re.MULTILINE)
        if found:
            return int(found[1]) << 10
    return 4 << 30


def nbytes(*tensors: Tensor | None) -> int:
    """Bytes of some tensors; None counts nothing."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None)


def peak_bytes(function: Callable[[], object], device: torch.device) -> int:
    """Bytes that a call allocates at its peak, over what was there before."""
    # The allocator tells on CUDA; elsewhere the tensors that operators return are counted, which leaves out what a
    # kernel holds while it runs.
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        function()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device)) - before
    with _LiveBytes() as live:
        function()
    peak: int = live.peak
    return peak


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of storages that operators return, from the first time each is seen until it is freed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        self.peak = 0
        self._alive: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {id(leaf.untyped_storage()): leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and id(leaf.untyped_storage()) not in given:
                self._track(leaf.untyped_storage())
        return result

    def _track(self, storage: Any) -> None:
        key = id(storage)
        if key in self._alive:
            return
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)

        def freed(_: object) -> None:
            self.now -= size
            self._alive.pop(key, None)

        self._alive[key] = weakref.ref(storage, freed)


class MemoryBudget:
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
        """Returns memory."""
        self.left += size


class Recording:
    """The residual streams of one tower's inputs, and points at the depth under work, as far as the budget goes.

    The rest is computed again from the nearest stream before it, or from the inputs.
    """

    def __init__(
        self, walk: Walk, inputs: Tensor, batch_size: int, device: torch.device, budget: MemoryBudget, *, keep: bool
    ) -> None:
        self.walk = walk
        self.inputs = inputs
        self._device = device
        self._budget = budget
        self._keep = keep
        # Inputs of similar length together, each cut at its chunk's longest.
        self._lengths = walk.lengths(inputs)
        order = torch.arange(len(inputs)) if self._lengths is None else self._lengths.cpu().argsort(stable=True)
        self.rows = order.tensor_split(-(-len(order) // batch_size))  # of nearly equal size
        self._streams: list[dict[int, Any]] = [{} for _ in self.rows]
        self._points: dict[int, tuple[int, Point]] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def stem(self, chunk: int) -> Any:
        """The stream that enters the first sub-layer."""
        rows = self.rows[chunk]
        if self._lengths is None:
            part = self.inputs[int(rows[0]) : int(rows[-1]) + 1]
        else:
            part = self.inputs[rows.to(self.inputs.device)]
            part = part[:, : int(self._lengths[rows.to(self._lengths.device)].max())]
        return self.walk.stem(part.to(self._device))

    def fill(self) -> None:
        """Records the first streams of all chunks, before anything else takes the memory."""
        for chunk in range(len(self)):
            if not self._streams[chunk]:
                self._store(chunk, 0, self.stem(chunk))

    def stream(self, chunk: int, depth: int) -> Any:
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

    def _store(self, chunk: int, depth: int, stream: Any) -> None:
        size = nbytes(*self.walk.kept(stream))
        stored = self._budget.take(size)
        if not stored and depth - 1 in self._streams[chunk]:  # rather the latest stream than the one before it
            self._drop_stream(chunk, depth - 1)
            stored = self._budget.take(size)
        if stored:
            self._streams[chunk][depth] = stream

    def _drop_stream(self, chunk: int, depth: int) -> None:
        if depth in self._streams[chunk]:
            self._budget.give(nbytes(*self.walk.kept(self._streams[chunk].pop(depth))))

    def _drop_point(self, chunk: int) -> None:
        if chunk in self._points:
            _, point = self._points.pop(chunk)
            self._budget.give(nbytes(point.hidden, point.out))
