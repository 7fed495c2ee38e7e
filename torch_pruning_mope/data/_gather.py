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
    """Three datasets, no two of which share an image."""

    calibration: AnyPairs
    train: AnyPairs
    test: AnyPairs


def split_pairs(
    dataset: AnyPairs, *, calibration: int | float = 0.1, test: int | float = 0.1, seed: int = 0
) -> PairSplit[AnyPairs]:
    """Divides a dataset at random into images to score on, to train on and to test on.

    A hash of the seed and an image's name decides (in shards: of the shard's name and the sample's key), so neither the order
    of a file nor the machine matters. Copies of an image under other names are not noticed.

    Args:
        dataset: From `open_pairs`.
        calibration: Number of images to score on, or their share if below 1. Shards take shares alone.
        test: Number of images to test on, likewise; the rest is to train on.
        seed: Of the division.

    Returns:
        The parts, in random order if they are of image files; each counts what it skips.

    Raises:
        DataError: There are not as many images, or a part of image files is empty although a size above 0 was asked.
        ValueError: A size is negative, no whole number above 1, or a number where shards need a share.
    """
    for name, size in (("calibration", calibration), ("test", test)):
        if size < 0 or (size >= 1 and size != int(size)):
            raise ValueError(f"{name} must be a share below 1 or a whole number of images; found {size}.")
    names = [f"{dataset.name} ({part})" for part in ("calibration", "train", "test")]
    if isinstance(dataset, ShardedPairs):
        if calibration >= 1 or test >= 1 or calibration + test > 1:
            raise ValueError(
                f"calibration and test must be shares of shards that sum to 1 at most; found {calibration} and {test}. The "
                "samples of shards are not counted before they are read."
            )
        bounds = (0.0, calibration), (calibration + test, 1.0), (calibration, calibration + test)
        select = functools.partial(dataset.select, seed=seed)
        return PairSplit(*(select(*bound, name) for bound, name in zip(bounds, names, strict=True)))
    total = len(dataset)
    first, second = (round(size * total) if size < 1 else int(size) for size in (calibration, test))
    if first + second > total or (calibration and not first) or (test and not second):
        raise DataError(
            f"calibration and test must be parts of the {total} images of {dataset.name}; found {first} and {second}."
        )
    order = sorted(range(total), key=lambda index: (position(seed, dataset.entries[index].name), index))
    parts = order[:first], order[first + second :], order[first : first + second]
    return PairSplit(*(dataset.select(part, name) for part, name in zip(parts, names, strict=True)))


def gather_pairs(
    dataset: ImagePairs | ShardedPairs,
    limit: int | None = None,
    *,
    batch_size: int = 64,
    num_workers: int = 0,
    progress: bool = True,
) -> Pairs:
    """Reads images with all their captions into memory, each image once, in the order of the source.

    Unreadable ones are left out, with a warning that counts them; the next images take their place. With several workers, image
    files keep their order; shards take turns. Every rank of several gets the same pairs.

    Args:
        dataset: From `open_pairs`.
        limit: Number of images; None for all.
        batch_size: Images that a worker reads at a time.
        num_workers: Processes that read; 0 reads in this one.
        progress: Shows a progress bar.

    Returns:
        The pairs, with the `image_index` of each caption.

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
