"""Samples that could not be read: counted by reason, with examples, and judged at the end of a pass."""

import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch

from .._io import printable
from ..errors import DataError

SkipReason = Literal[
    "file missing",
    "file outside",
    "image unreadable",
    "image missing",
    "caption missing",
    "entry malformed",
    "shard unreadable",
    "shard empty",
]
Captions = Literal["random", "first"]
OF_SHARDS = ("shard unreadable", "shard empty")
EXAMPLES = 3  # per reason


class Problem(Exception):  # noqa: N818  (it never leaves the package)
    """One entry, sample or shard that cannot be used, to be skipped and counted."""

    def __init__(self, reason: SkipReason, where: str) -> None:
        super().__init__(reason, where)
        self.reason, self.where = reason, where


@dataclass(frozen=True)
class Skipped:
    """Samples and shards that could not be used, of a source when it was opened or of one pass over it.

    Attributes:
        counts: Their number, by reason.
        examples: The first of each reason, in words.
        read: Samples that could be used.
        shards: Shards that were begun.
    """

    counts: Mapping[SkipReason, int] = field(default_factory=dict)
    examples: Mapping[SkipReason, tuple[str, ...]] = field(default_factory=dict)
    read: int = 0
    shards: int = 0

    @classmethod
    def of(cls, problems: Iterable[Problem], read: int = 0) -> "Skipped":
        """Returns the summary of a list of problems."""
        examples: dict[SkipReason, tuple[str, ...]] = {}
        counts: Counter[SkipReason] = Counter()
        for problem in problems:
            counts[problem.reason] += 1
            if counts[problem.reason] <= EXAMPLES:
                examples[problem.reason] = (*examples.get(problem.reason, ()), printable(problem.where))
        return cls(dict(counts), examples, read)

    def __add__(self, other: "Skipped") -> "Skipped":
        counts = Counter(self.counts) + Counter(other.counts)
        examples = {
            reason: (*self.examples.get(reason, ()), *other.examples.get(reason, ()))[:EXAMPLES] for reason in counts
        }
        return Skipped(dict(counts), examples, self.read + other.read, self.shards + other.shards)

    @property
    def samples(self) -> int:
        """Number of samples skipped; those of an unreadable shard are not known."""
        return sum(count for reason, count in self.counts.items() if reason not in OF_SHARDS)

    @property
    def bad_shards(self) -> int:
        """Number of shards that could not be read to their end, or were empty."""
        return sum(count for reason, count in self.counts.items() if reason in OF_SHARDS)

    @property
    def share(self) -> float:
        """Share of the samples that were skipped, or of the shards if that is larger."""
        return max(self.samples / max(1, self.samples + self.read), self.bad_shards / max(1, self.shards))

    def __bool__(self) -> bool:
        return bool(self.counts)

    def __str__(self) -> str:
        numbers = (self.samples, self.samples + self.read, "samples"), (self.bad_shards, self.shards, "shards")
        parts = [f"{bad} of {total} {noun}" for bad, total, noun in numbers if bad or (total and noun == "samples")]
        reasons = [
            f"{count} × {reason} ({'; '.join(self.examples.get(reason, ()))}{'; …' * (count > EXAMPLES)})"
            for reason, count in self.counts.items()
        ]
        return (" and ".join(parts) or "nothing") + " skipped" + f": {', '.join(reasons)}" * bool(reasons)

    def judge(self, name: str, max_skipped: float) -> None:
        """Raises DataError, about the source of this name, if the share is larger than allowed."""
        if self.share > max_skipped:
            raise DataError(
                f"{name} must have at most {max_skipped:.1%} of its samples and of its shards unreadable (max_skipped); found "
                f"{self}. Mend or remove them, or raise max_skipped."
            )


class Counted:
    """A dataset that counts the samples that it skips.

    `dropped` are entries left out when the source was opened, `skipped` what the last or the current pass met. `expected` are
    the samples and shards that there are, as far as known: a pass ends early once too many of them are bad.
    """

    def __init__(
        self,
        name: str,
        captions: Captions,
        max_skipped: float,
        seed: int,
        dropped: Skipped,
        *,
        expected: tuple[int, int],
    ) -> None:
        if captions not in get_args(Captions):
            raise ValueError(f"captions must be one of {', '.join(get_args(Captions))}; found {captions!r}.")
        if not 0 <= max_skipped <= 1:
            raise ValueError(f"max_skipped must be a share in [0, 1]; found {max_skipped}. 0.1 allows one in ten.")
        self.name, self.captions, self.max_skipped, self.seed = name, captions, max_skipped, seed
        self.dropped, self.expected = dropped, expected
        dropped.judge(name, max_skipped)
        if dropped:
            warnings.warn(f"{name}: {dropped}", stacklevel=4)
        self._restart()

    def _restart(self) -> None:
        """Forgets counts and epoch; a copy that is to count for itself starts with this."""
        self.skipped = Skipped()
        self._reports = False  # True in workers whose counts go home with their batches
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()  # running workers see a new one

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._epoch.share_memory_()  # a deep copy is not

    @property
    def epoch(self) -> int:
        """Number of the epoch, on which random draws depend."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Sets the number of the epoch, in running workers too, and starts to count anew; call it before each."""
        self._epoch.fill_(epoch)
        self.skipped = Skipped()

    def check_skipped(self) -> None:
        """Warns of the samples skipped in a pass, at its end."""
        found = self.skipped
        found.judge(self.name, self.max_skipped)
        if found.read == 0 and (found or found.shards):
            raise DataError(f"{self.name} must hold samples that can be read; found {found}. Mend the source.")
        if found:
            warnings.warn(f"{self.name}: {found}", stacklevel=2)

    def _count(self, found: Skipped) -> None:
        """Adds counts, and ends the pass if the rest of it cannot make up for them."""
        self.skipped += found
        total, (samples, shards) = self.skipped, self.expected
        if total.samples > self.max_skipped * max(samples, total.samples + total.read) or (
            total.bad_shards > self.max_skipped * max(shards, total.shards)
        ):
            total.judge(self.name, self.max_skipped)

    def _take(self) -> Skipped:
        """Returns the counts since the last call."""
        taken, self.skipped = self.skipped, Skipped()
        return taken
