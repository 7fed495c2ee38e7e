"""Memory that scoring may use, and memory that a step needs."""

import re
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

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
