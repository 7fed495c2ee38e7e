"""Loaders whose workers report, with every batch, what they could not read."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from ._image_pairs import ImagePairs, position
from ._sharded_pairs import ShardedPairs
from ._skipped import Counted, Skipped


class CountingLoader(DataLoader[Any]):
    """A DataLoader that adds what its workers count to a dataset in the main process; samples of None are left out."""

    def __init__(self, dataset: Dataset[Any], *arguments: Any, counted: Counted, **options: Any) -> None:
        super().__init__(dataset, *arguments, **options)
        self._counted = counted

    def __iter__(self) -> Any:
        counted, collate = self._counted, self.collate_fn
        counted.skipped, counted._reports = Skipped(), True
        batches: Any = ()
        try:
            self.collate_fn = _Reported(collate, counted)  # for workers that start here, not for copies of this loader
            batches = super().__iter__()
            self.collate_fn = collate
            for batch, report in batches:
                counted._count(report)
                if batch is not None:
                    yield batch
        finally:
            self.collate_fn, counted._reports = collate, False
            if (
                not self.persistent_workers
            ):  # else an error's traceback keeps the workers, and the process waits for them
                getattr(batches, "_shutdown_workers", int)()


class _Reported:
    """Collates samples, and adds what has been counted in this worker since its last batch."""

    def __init__(self, collate: Callable[[Any], Any], counted: Counted) -> None:
        self._collate, self._counted = collate, counted

    def __call__(self, samples: Any) -> tuple[Any, Skipped]:
        if isinstance(samples, list):
            samples = [sample for sample in samples if sample is not None] or None
        batch = None if samples is None else self._collate(samples)
        return batch, self._counted._take() if get_worker_info() else Skipped()


class PairLoader(CountingLoader):
    """A DataLoader of `(images, tokens)` from `open_pairs`: every pass is a new epoch, and ends with `check_skipped`.

    It takes the arguments of a DataLoader. Order and captions depend on the dataset's seed and the number of the epoch alone,
    so a run that starts again sees the same batches. Ranks share image files out with `sampler=DistributedSampler(dataset)`;
    shards they share out by themselves. Libraries that make a loader of their own from it, as Accelerate's `prepare` does,
    leave `set_epoch` and `check_skipped` to you.
    """

    def __init__(self, dataset: ImagePairs | ShardedPairs, *arguments: Any, **options: Any) -> None:
        self._draws = options["generator"] = options.get("generator") or torch.Generator()
        super().__init__(dataset, *arguments, counted=dataset, **options)

    def __iter__(self) -> Any:
        pairs = self._counted
        epoch = pairs.epoch
        self._draws.manual_seed(int(position(pairs.seed, f"epoch {epoch}") * 2**48))
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)
        yield from super().__iter__()
        pairs.check_skipped()
        pairs._epoch.fill_(epoch + 1)
