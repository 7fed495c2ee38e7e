"""From datasets to pairs in memory, and to disjoint parts."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset
from tqdm import tqdm

from torch_pruning_mope.data._image_pairs import Described, ImagePairs, position
from torch_pruning_mope.data._pairs import Pairs
from torch_pruning_mope.data._sharded_pairs import ShardedPairs
from torch_pruning_mope.errors import DataError

AnyPairs = TypeVar("AnyPairs", ImagePairs, ShardedPairs)


@dataclass(frozen=True)
class PairSplit(Generic[AnyPairs]):
    """Three datasets of which no image is in two."""

    calibration: AnyPairs
    train: AnyPairs
    test: AnyPairs


def split_pairs(
    dataset: AnyPairs, *, calibration: int | float = 0.1, test: int | float = 0.1, seed: int = 0
) -> PairSplit[AnyPairs]:
    """Divides a dataset at random into images to score on, to train on and to test on.

    What decides is a hash of the seed and an image's name (in shards: of the shard's name and the sample's key), so the order
    of a file does not matter, nor on which machine it is. Copies of an image under other names are not noticed.

    Args:
        dataset: What `open_pairs` returns.
        calibration: How many images to score on, or which share if below 1. Shards take shares alone.
        test: How many to test on, likewise; the rest is to train on.
        seed: Of the division.

    Returns:
        The parts, in random order if they are of image files; each counts what it skips.

    Raises:
        DataError: There are not as many images, or a part of image files is empty although a size above 0 was asked.
        ValueError: A size is negative, no whole number above 1, or a number where shards need a share.
    """
    for name, size in (("calibration", calibration), ("test", test)):
        if size < 0 or (size >= 1 and size != int(size)):
            raise ValueError(f"{name}: must be a share below 1 or a whole number of images, found {size}; round it")
    if isinstance(dataset, ShardedPairs):
        if calibration >= 1 or test >= 1 or calibration + test > 1:
            raise ValueError(
                f"calibration, test: of shards must be shares that sum to 1 at most, found {calibration} and {test}; samples "
                "are not counted before they are read"
            )
        select = functools.partial(dataset.select, seed=seed)
        return PairSplit(
            select(0.0, calibration, f"{dataset.name} (calibration)"),
            select(calibration + test, 1.0, f"{dataset.name} (train)"),
            select(calibration, calibration + test, f"{dataset.name} (test)"),
        )
    total = len(dataset)
    first, second = (round(size * total) if size < 1 else int(size) for size in (calibration, test))
    if first + second > total or (calibration and not first) or (test and not second):
        raise DataError(
            f"calibration, test: must be parts of the {total} images of {dataset.name}, found {first} and "
            f"{second}; ask for others"
        )
    order = sorted(range(total), key=lambda index: (position(seed, dataset.entries[index].name), index))
    return PairSplit(
        dataset.select(order[:first], f"{dataset.name} (calibration)"),
        dataset.select(order[first + second :], f"{dataset.name} (train)"),
        dataset.select(order[first : first + second], f"{dataset.name} (test)"),
    )


def gather_pairs(
    dataset: ImagePairs | ShardedPairs,
    limit: int | None = None,
    *,
    batch_size: int = 64,
    num_workers: int = 0,
    progress: bool = True,
) -> Pairs:
    """Reads images with all their captions into memory, each image once, in the order of the source.

    What cannot be read is left out, with a warning that counts it; the next images take its place. With several workers, image
    files keep their order; shards take turns. Every rank of several gets the same pairs.

    Args:
        dataset: What `open_pairs` returns.
        limit: How many images; None for all.
        batch_size: How many images a worker reads at a time.
        num_workers: Processes that read; 0 reads in this one.
        progress: Whether to show a progress bar.

    Returns:
        The pairs, with `image_index` of each caption.

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
    images, tokens, counts = [], [], []
    total = limit if shards else min(limit or len(dataset), len(dataset))  # type: ignore[arg-type]
    with tqdm(total=total, desc="images", unit="image", disable=not progress, delay=2, leave=False) as bar:
        for batch in loader:
            if batch is not None:
                # Copies: what a worker sends is in shared memory, of which there is little.
                images.append(batch.images.clone())
                tokens.append(batch.tokens.clone())
                counts += batch.counts
                bar.update(len(batch.counts))
            if limit is not None and len(counts) >= limit:
                break
    if len(counts) < 2:
        raise DataError(
            f"{dataset.name}: at least two images with captions must be readable, found {len(counts)}: {dataset.skipped}; "
            "mend the files, or pass others"
        )
    dataset.check_skipped()
    index = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    pairs = Pairs(torch.cat(images), torch.cat(tokens), index)
    return pairs if limit is None else pairs.first(limit)


class _Batch(NamedTuple):
    """Images `[B, ...]`, the tokens of all their captions, and how many each has."""

    images: Tensor
    tokens: Tensor
    counts: list[int]


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


def _collate(samples: list[Described | None]) -> _Batch | None:
    found = [sample for sample in samples if sample is not None]
    if not found:
        return None
    for (first, _), (image, _) in itertools.pairwise(found):
        if image.shape != first.shape:
            raise DataError(
                f"preprocess: must return images of one size, found {list(first.shape)} and {list(image.shape)}; let it resize "
                "and crop"
            )
    return _Batch(
        torch.stack([image for image, _ in found]),
        torch.cat([tokens for _, tokens in found]),
        [len(tokens) for _, tokens in found],
    )
