"""From datasets to pairs in memory, and to disjoint parts."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from ..errors import DataError
from ._batches import described_batches
from ._image_pairs import ImagePairs, position
from ._pairs import Pairs
from ._sharded_pairs import ShardedPairs

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
    images, tokens, counts = [], [], []
    for batch in described_batches(dataset, limit, batch_size=batch_size, num_workers=num_workers, progress=progress):
        images.append(batch.images)
        tokens.append(batch.tokens)
        counts += batch.counts
    index = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return Pairs(torch.cat(images), torch.cat(tokens), index)
