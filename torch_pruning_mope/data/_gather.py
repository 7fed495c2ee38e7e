"""Datasets read from beginning to end, into memory, and divided into disjoint parts."""

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset
from tqdm import tqdm

from ..errors import DataError
from ._image_pairs import Described, ImagePairs, position
from ._loader import CountingLoader
from ._pairs import Pairs
from ._sharded_pairs import ShardedPairs


class DescribedBatch(NamedTuple):
    """Images `[B, ...]`, the tokens of all their captions in the order of the images, and each image's number of captions."""

    images: Tensor
    tokens: Tensor
    counts: list[int]

    def first(self, count: int) -> "DescribedBatch":
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
