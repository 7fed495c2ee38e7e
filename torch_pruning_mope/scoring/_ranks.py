"""The processes that score together: one, or those that ``torchrun`` has started."""

import copy
import functools
import itertools
import os
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from ..encoder import EncoderCore

T = TypeVar("T")

_PATIENCE = timedelta(minutes=15)
"""Ranks wait so long for others that give no sign of life; a process that dies is noticed at once."""
_POLL, _BEAT = 0.02, 5.0
"""Seconds between looks at whether all have come, and between signs of life."""


_GROUPS = itertools.count()
"""Ranks make groups in the same order, so they count alike."""


@functools.cache
def _store() -> Any:
    """The store that torchrun gives all ranks to meet at."""
    store, _, _ = next(rendezvous("env://"))
    return store


class Ranks:
    """This process and its peers. Objects travel over gloo, whatever the default backend is.

    Joins the default process group if there is one, makes one under ``torchrun``, and is alone otherwise.
    """

    def __init__(self) -> None:
        launched = (
            dist.is_available() and dist.is_torchelastic_launched() and int(os.environ.get("WORLD_SIZE", "1")) > 1
        )
        self._own = launched and not dist.is_initialized()
        if self._own:
            # Under keys of its own each time: those of a group that has ended may still be in torchrun's store.
            rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
            store = dist.PrefixStore(f"mope/{next(_GROUPS)}", _store())  # type: ignore[attr-defined]
            dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=_PATIENCE)
        together = dist.is_available() and dist.is_initialized()
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if together else (0, 1)
        self._name, self._meetings, self._waiting = f"mope/{next(_GROUPS)}", 0, False
        self._done = threading.Event()
        self._beats = threading.Thread(target=self._beat, daemon=True)
        self._group: Any = None
        if self.world > 1:
            self._store = dist.distributed_c10d._get_default_store()
            self._beats.start()
            self._meet()
            self._group = dist.new_group(backend="gloo", timeout=_PATIENCE)

    def close(self) -> None:
        """Leaves no process group behind that was not there, so that the user's script can make its own."""
        self._done.set()
        if self._beats.is_alive():
            self._beats.join()
        if self._own:
            dist.destroy_process_group()  # and with it the group for objects
        elif self._group is not None:
            dist.destroy_process_group(self._group)
        self._own, self._group = False, None

    def _beat(self) -> None:
        """Gives signs of life while this rank works, and does not wait itself."""
        while not self._done.wait(_BEAT):
            if not self._waiting:
                self._store.add(f"{self._name}/beats", 1)

    def _meet(self) -> None:
        """Waits for all ranks, as long as those that work give signs of life: their shares may take hours."""
        self._meetings += 1
        met = f"{self._name}/met/{self._meetings}"
        self._store.add(met, 1)
        self._waiting, beats, since = True, -1, time.monotonic()
        while (found := int(self._store.add(met, 0))) < self.world:
            now = int(self._store.add(f"{self._name}/beats", 0))
            if now != beats:
                beats, since = now, time.monotonic()
            if time.monotonic() - since > _PATIENCE.total_seconds():
                raise TimeoutError(
                    f"all {self.world} ranks must make the same calls; found {found} waiting, and no sign of the others for "
                    f"{_PATIENCE.total_seconds() / 60:.0f} minutes."
                )
            time.sleep(_POLL)
        self._waiting = False

    def gather(self, mine: Any) -> list[Any]:
        """Every rank's object, on every rank, in the order of the ranks."""
        if self.world == 1:
            return [mine]
        self._meet()
        everyone: list[Any] = [None] * self.world
        dist.all_gather_object(everyone, mine, group=self._group)
        return everyone

    def spread(self, tensors: Sequence[Tensor], source: int) -> None:
        """Overwrites tensors, of the same shapes on all ranks, with those of the rank ``source``."""
        self._meet()
        for tensor in tensors:
            copy_of_it = tensor.detach().cpu().contiguous()
            dist.broadcast(copy_of_it, source, group=self._group)
            if self.rank != source:
                tensor.detach().copy_(copy_of_it)

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Overwrites tensors, on any device, with their sums over all ranks, to the same bits on each."""
        if self.world == 1:
            return
        self._meet()
        for tensor in tensors:
            own = tensor.detach().cpu().contiguous()
            dist.all_reduce(own, group=self._group)
            tensor.detach().copy_(own)

    def first(self, mine: Any) -> Any:
        """Rank 0's object, on every rank."""
        return self.gather(mine if self.rank == 0 else None)[0]

    def from_first(self, make: Callable[[], T]) -> T:
        """Calls ``make`` on rank 0 alone; every rank returns or raises its outcome."""
        found: T = self.first(self.on_all(lambda: make() if self.rank == 0 else None))
        return found

    def on_all(self, make: Callable[[], T]) -> T:
        """Calls ``make`` on this rank; raises on every rank if it raised on one."""
        if self.world == 1:
            return make()
        value, failure = None, None
        try:
            value = make()
        except Exception as error:  # noqa: BLE001  (raised on every rank)
            failure = error
        for found in self.gather(failure):
            if found is not None:
                raise found
        return value  # type: ignore[return-value]

    def check_same(self, **values: object) -> None:
        """Raises ValueError unless all ranks hold equal values."""
        everyone = self.gather(values)
        for name, value in values.items():
            found = [other[name] for other in everyone]
            if found.count(value) != self.world:
                raise ValueError(
                    f"{name} must be the same on all ranks; found {[str(other)[:24] for other in found]}. Pass the same "
                    "arguments, load the same weights and draw the same pairs in the same order on each (seed them)."
                )

    def placed(self, encoder: EncoderCore) -> EncoderCore:
        """The encoder, or a copy on this rank's own GPU where all ranks have put theirs on the first one."""
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if self.world == 1 or encoder.device.type != "cuda" or encoder.device.index == local:
            return encoder
        if local >= torch.cuda.device_count():
            return encoder
        return type(encoder)(copy.deepcopy(encoder.model).to(f"cuda:{local}"))
