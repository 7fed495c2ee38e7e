"""Datasets read from beginning to end, each image once with everything that is said of it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset
from tqdm import tqdm

from ..errors import DataError
from ._image_pairs import Described, ImagePairs
from ._sharded_pairs import ShardedPairs


class DescribedBatch(NamedTuple):
    """Images `[B, ...]`, the tokens of all their captions in the order of the images, and how many each has."""

    images: Tensor
    tokens: Tensor
    counts: list[int]

    def first(self, count: int) -> DescribedBatch:
        """Returns the first images with all their captions; all if there are no more."""
        counts = self.counts[:count]
        return DescribedBatch(self.images[:count], self.tokens[: sum(counts)], counts)


def described_batches(
    dataset: ImagePairs | ShardedPairs,
    limit: int | None = None,
    *,
    batch_size: int = 64,
    num_workers: int = 0,
    progress: bool = True,
) -> Iterator[DescribedBatch]:
    """Reads images with all their captions, each image once, in the order of the source; arguments as in `gather_pairs`.

    Args:
        dataset: What `open_pairs` returns.
        limit: How many images; None for all.
        batch_size: How many images a worker reads at a time.
        num_workers: Processes that read; 0 reads in this one.
        progress: Whether to show a progress bar.

    Yields:
        What can be read.

    Raises:
        DataError: Fewer than two images can be read, or more than the dataset's `max_skipped` cannot.
        TypeError: The dataset is another, such as a Subset.
        ValueError: The limit is below 2.
    """
    if not isinstance(dataset, ImagePairs | ShardedPairs):
        raise TypeError(
            f"dataset: must be what open_pairs returns, found {type(dataset).__name__}; take parts with split_pairs or select"
        )
    if limit is not None and limit < 2:
        raise ValueError(f"limit: retrieval needs at least two images, found {limit}; ask for a few hundred")
    shards = isinstance(dataset, ShardedPairs)
    source: Dataset[Any] = _OnePass(dataset) if isinstance(dataset, ShardedPairs) else _InOrder(dataset)
    loader: DataLoader[Any] = DataLoader(source, batch_size, num_workers=num_workers, collate_fn=_collate)
    total = limit if shards else min(limit or len(dataset), len(dataset))  # type: ignore[arg-type]
    found = 0
    with tqdm(total=total, desc="images", unit="image", disable=not progress, delay=2, leave=False) as bar:
        for batch in loader:
            if batch is not None:
                part = batch if limit is None else batch.first(limit - found)
                found += len(part.counts)
                bar.update(len(part.counts))
                # Copies: what a worker sends is in shared memory, of which there is little.
                yield DescribedBatch(part.images.clone(), part.tokens.clone(), part.counts)
            if found == limit:
                break
    if found < 2:
        raise DataError(
            f"{dataset.name}: at least two images with captions must be readable, found {found}: {dataset.skipped}; "
            "mend the files, or pass others"
        )
    dataset.check_skipped()


class _InOrder(Dataset[Described | None]):
    def __init__(self, dataset: ImagePairs) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Described | None:
        return self.dataset.describe(index)


class _OnePass(IterableDataset[Described]):
    def __init__(self, dataset: ShardedPairs) -> None:
        self.dataset = dataset

    def __iter__(self) -> Iterator[Described]:
        return self.dataset.one_pass()


def _collate(samples: list[Described | None]) -> DescribedBatch | None:
    found = [sample for sample in samples if sample is not None]
    if not found:
        return None
    for (first, _), (image, _) in itertools.pairwise(found):
        if image.shape != first.shape:
            raise DataError(
                f"preprocess: must return images of one size, found {list(first.shape)} and {list(image.shape)}; let it resize "
                "and crop"
            )
    return DescribedBatch(
        torch.stack([image for image, _ in found]),
        torch.cat([tokens for _, tokens in found]),
        [len(tokens) for _, tokens in found],
    )
