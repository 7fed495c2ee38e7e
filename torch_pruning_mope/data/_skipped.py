"""What could not be read: counted by reason, with examples, over all processes of a DataLoader."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from .._io import printable
from ..errors import DataError

Reason = Literal[
    "file missing",
    "file outside",
    "image unreadable",
    "image missing",
    "caption missing",
    "entry malformed",
    "shard unreadable",
    "shard empty",
]
REASONS: tuple[Reason, ...] = get_args(Reason)
OF_SHARDS = ("shard unreadable", "shard empty")

EXAMPLES = 3  # per reason
WORKERS, TEXT_BYTES = 128, 256  # rows of the shared table, and the room for an example in it


class Problem(NamedTuple):
    """One entry, sample or shard that cannot be used: the reason, and which it is."""

    reason: Reason
    where: str


@dataclass(frozen=True)
class Skipped:
    """How many samples could not be used, by reason, and which the first were.

    `read` counts the samples that could be used, `shards` the shards that were begun.
    """

    counts: Mapping[Reason, int]
    examples: Mapping[Reason, tuple[str, ...]]
    read: int
    shards: int = 0

    @classmethod
    def of(cls, problems: Iterable[Problem], read: int) -> Skipped:
        """Returns the summary of a list of problems."""
        problems = [Problem(reason, printable(where)) for reason, where in problems]
        examples = {
            reason: tuple(where for found, where in problems if found == reason)[:EXAMPLES]
            for reason in dict.fromkeys(found for found, _ in problems)
        }
        return cls(Counter(reason for reason, _ in problems), examples, read)

    @property
    def samples(self) -> int:
        """How many samples were skipped; those of a shard that cannot be read are not known."""
        return sum(count for reason, count in self.counts.items() if reason not in OF_SHARDS)

    @property
    def bad_shards(self) -> int:
        """How many shards could not be read to their end, or held nothing."""
        return sum(count for reason, count in self.counts.items() if reason in OF_SHARDS)

    @property
    def share(self) -> float:
        """The share of samples that were skipped, or of bad shards if that is larger."""
        return max(self.samples / max(1, self.samples + self.read), self.bad_shards / max(1, self.shards))

    def __bool__(self) -> bool:
        return any(self.counts.values())

    def __str__(self) -> str:
        numbers = (self.samples, self.samples + self.read, "samples"), (self.bad_shards, self.shards, "shards")
        parts = [f"{bad} of {total} {unit}" for bad, total, unit in numbers if bad or (total and unit == "samples")]
        reasons = [
            f"{count} × {reason} ({'; '.join(self.examples.get(reason, ()))}{'; …' * (count > EXAMPLES)})"
            for reason, count in self.counts.items()
            if count
        ]
        return (" and ".join(parts) or "nothing") + " skipped" + f": {', '.join(reasons)}" * bool(reasons)

    def judge(self, name: str, max_skipped: float) -> None:
        """Refuses what has more gaps than allowed.

        Args:
            name: What was read.
            max_skipped: The share that may be skipped.

        Raises:
            DataError: More was.
        """
        if self.share > max_skipped:
            raise DataError(
                f"{name}: at most {max_skipped:.1%} of samples and of shards may be unreadable (max_skipped), found {self}; "
                "mend or remove them, or raise max_skipped"
            )


class Counted:
    """A dataset that counts what it skips, also in the worker processes of a DataLoader.

    Workers have copies of the dataset, so counts are in shared memory, whose tensors keep their identity on the way to a
    worker: each process writes a row of its own, which takes no locks, and the main process adds the rows up.
    """

    def __init__(
        self, name: str, max_skipped: float, seed: int, dropped: Skipped, *, expected: tuple[int, int]
    ) -> None:
        if not 0 <= max_skipped <= 1:
            raise ValueError(f"max_skipped: must be a share in [0, 1], found {max_skipped}; 0.1 allows one in ten")
        self.name, self.max_skipped, self.seed = name, max_skipped, seed
        self.dropped = dropped
        """Entries that were left out when the source was opened: they name no image, or have no caption."""
        self.expected = expected
        """Samples and shards that there are, as far as known: an epoch stops early once too many of these are bad."""
        dropped.judge(name, max_skipped)
        if dropped:
            warnings.warn(f"{name}: {dropped}", stacklevel=4)
        self._restart()

    def _restart(self) -> None:
        """Forgets all that was counted; a copy that is to count for itself starts with this."""
        self._counts = torch.zeros(1 + WORKERS, 2 + len(REASONS), dtype=torch.int64).share_memory_()
        self._texts = torch.zeros(1 + WORKERS, len(REASONS), EXAMPLES, TEXT_BYTES, dtype=torch.uint8).share_memory_()
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()
        self._warned = 0

    def __setstate__(self, state: dict[str, Any]) -> None:
        for value in state.values():
            if isinstance(value, Tensor):  # a deep copy of a shared tensor is not shared
                value.share_memory_()
        self.__dict__.update(state)

    @property
    def epoch(self) -> int:
        """Number of the epoch, which the draws of this dataset depend on."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Sets the number of the epoch, in running workers too; call it before each, as with a DistributedSampler."""
        self._epoch.fill_(epoch)

    @property
    def skipped(self) -> Skipped:
        """What was skipped in reading so far, in all processes of this machine that read for this one."""
        read, shards, *counts = self._counts.sum(0).tolist()
        found = {reason: count for reason, count in zip(REASONS, counts, strict=True) if count}
        return Skipped(found, {reason: self._examples(reason) for reason in found}, read, shards)

    def check_skipped(self) -> None:
        """Warns of what was skipped since the last call; for the end of an epoch.

        Raises:
            DataError: More than `max_skipped` of the samples, or shards, were, or there are none.
        """
        found = self.skipped
        number = found.samples + found.bad_shards
        found.judge(self.name, self.max_skipped)
        if found.read == 0 and (number or found.shards):
            raise DataError(f"{self.name}: must hold samples that can be read, found {found}; mend the source")
        if number > self._warned:
            self._warned = number
            warnings.warn(f"{self.name}: {found}", stacklevel=2)

    def _examples(self, reason: Reason) -> tuple[str, ...]:
        rows = self._texts[:, REASONS.index(reason)].flatten(0, 1)
        found = [bytes(row.tolist()).rstrip(b"\0").decode(errors="ignore") for row in rows[(rows != 0).any(-1)]]
        return tuple(dict.fromkeys(found))[:EXAMPLES]

    def _count_read(self) -> None:
        self._counts[_row(), 0] += 1

    def _count_shard(self) -> None:
        self._counts[_row(), 1] += 1

    def _skip(self, reason: Reason, where: str) -> None:
        """Counts one problem, and stops the epoch if the rest of it cannot make up for them."""
        where = printable(where)
        row, column = _row(), REASONS.index(reason)
        earlier = int(self._counts[row, 2 + column])
        if earlier < EXAMPLES:
            text = where.encode()[:TEXT_BYTES]
            self._texts[row, column, earlier, : len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        self._counts[row, 2 + column] = earlier + 1
        found, (samples, shards) = self.skipped, self.expected
        if found.samples > self.max_skipped * max(samples, found.samples + found.read) or (
            found.bad_shards > self.max_skipped * max(shards, found.shards)
        ):
            found.judge(self.name, self.max_skipped)


def _row() -> int:
    """Returns the row of this process; above 128 workers, two share one, and a count may get lost."""
    worker = get_worker_info()
    return 0 if worker is None else 1 + worker.id % WORKERS
