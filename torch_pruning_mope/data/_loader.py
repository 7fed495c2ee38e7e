"""Batches of pairs, epoch by epoch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ._image_pairs import ImagePairs, position
from ._sharded_pairs import ShardedPairs


class PairLoader(DataLoader[tuple[Tensor, Tensor]]):
    """A DataLoader of what `open_pairs` returns: every pass is a new epoch, and ends with `check_skipped`.

    It takes what a DataLoader takes, and workers of any start method bring their counts home. Order and captions depend on the
    dataset's seed and the number of the epoch alone, so a run that starts again sees the same batches. Ranks share image files
    out with `sampler=DistributedSampler(dataset)`; shards they share out by themselves. Libraries that make a loader of their
    own from it, as Accelerate's `prepare` does, leave `set_epoch` and `check_skipped` to you.
    """

    def __init__(self, dataset: ImagePairs | ShardedPairs, *arguments: Any, **options: Any) -> None:
        self._draws = options["generator"] = options.get("generator") or torch.Generator()
        super().__init__(dataset, *arguments, **options)
        self._pairs = dataset

    def __iter__(self) -> Any:
        epoch = self._pairs.epoch
        self._draws.manual_seed(int(position(self._pairs.seed, f"epoch {epoch}") * 2**48))
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)
        yield from super().__iter__()
        self._pairs.check_skipped()
        self._pairs.set_epoch(epoch + 1)
