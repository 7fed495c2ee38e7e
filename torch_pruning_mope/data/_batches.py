"""Datasets read from beginning to end, each image once with all its captions."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset
from tqdm import tqdm

from ..errors import DataError
from ._image_pairs import Described, ImagePairs
from ._loader import CountingLoader
from ._sharded_pairs import ShardedPairs


class DescribedBatch(NamedTuple):
    """Images `[B, ...]`, the tokens of all their captions in the order of the images, and each image's number of captions."""

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
    """Reads images with all their captions, each image once, in the order of the source; see `gather_pairs`."""
    if not isinstance(dataset, ImagePairs | ShardedPairs):
        raise TypeError(
            f"dataset must be a dataset of open_pairs; found {type(dataset).__name__}. Take parts with split_pairs or select."
        )
    if limit is not None and limit < 2:
        raise ValueError(f"limit must be at least 2; found {limit}. Retrieval needs a few hundred images.")
    source: Dataset[Any] = _OnePass(dataset) if isinstance(dataset, ShardedPairs) else _InOrder(dataset)
    loader = CountingLoader(source, batch_size, num_workers=num_workers, collate_fn=_collate, counted=dataset)
    total = limit if isinstance(dataset, ShardedPairs) else min(limit or len(dataset), len(dataset))
    found = 0
    with tqdm(total=total, desc="images", unit="image", disable=not progress, delay=2, leave=False) as bar:
        for batch in loader:
            part = batch if limit is None else batch.first(limit - found)
            found += len(part.counts)
            bar.update(len(part.counts))
            # Copies: a worker's batches are in shared memory, of which there is little.
            yield DescribedBatch(part.images.clone(), part.tokens.clone(), part.counts)
            if found == limit:
                break
    if found < 2:
        raise DataError(
            f"{dataset.name} must have at least two readable images with captions; found {found}: {dataset.skipped}. Mend the "
            "files, or pass others."
        )
    dataset.check_skipped()


class _InOrder(Dataset[Described | None]):
    def __init__(self, dataset: ImagePairs) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Described | None:
        return self.dataset.describe(index)


class _OnePass(IterableDataset[Described | None]):
    def __init__(self, dataset: ShardedPairs) -> None:
        self.dataset = dataset

    def __iter__(self) -> Iterator[Described | None]:
        return self.dataset.one_pass()


def _collate(samples: list[Described]) -> DescribedBatch:
    for first, second in itertools.pairwise(samples):
        if first.image.shape != second.image.shape:
            raise DataError(
                f"preprocess must return images of one size; found {list(first.image.shape)} and {list(second.image.shape)}. "
                "Let it resize and crop."
            )
    return DescribedBatch(
        torch.stack([image for image, _ in samples]),
        torch.cat([tokens for _, tokens in samples]),
        [len(tokens) for _, tokens in samples],
    )
