"""Pairs for the commands: the embedded emoji scenes, or what ``open_pairs`` reads, in parts that share no image."""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DistributedSampler

from ..data import ImagePairs, PairLoader, Pairs, ShardedPairs, emoji_scenes, gather_pairs, open_pairs, split_pairs
from ..loading import LoadedModel

EMOJI = "emoji"
SIZES = {"calibration": 1000, "train": 10_000, "test": 3000}
"""How many emoji scenes, of which there is no end, a part has unless told."""


class Part(StrEnum):
    """A part of the data; no image is in two."""

    calibration = "calibration"
    train = "train"
    test = "test"
    all = "all"


@dataclass(frozen=True)
class DataSettings:
    """Where pairs come from, and how they are divided.

    Attributes:
        data: ``emoji``, or what ``open_pairs`` reads.
        root: Folder that image files are relative to.
        split: Part of a Karpathy file.
        image_key: Column of image files.
        caption_key: Column of captions.
        calibration: Share or number of images to score on.
        test: Share or number of images to test on.
        split_seed: Of the division.
        max_skipped: Share that may be unreadable.
    """

    data: str = EMOJI
    root: str | None = None
    split: str | None = None
    image_key: str | None = None
    caption_key: str | None = None
    calibration: float = 0.1
    test: float = 0.1
    split_seed: int = 0
    max_skipped: float = 0.1

    def pairs(self, part: Part, loaded: LoadedModel, limit: int | None = None, seed: int = 0) -> Pairs:
        """A part in memory.

        Args:
            part: Which.
            loaded: Prepares images and captions.
            limit: How many images; None for all there are, or the usual number of emoji scenes.
            seed: Which draw of emoji scenes.

        Returns:
            The pairs.
        """
        return self.with_captions(part, loaded, limit, seed)[0]

    def with_captions(
        self, part: Part, loaded: LoadedModel, limit: int | None = None, seed: int = 0
    ) -> tuple[Pairs, list[str] | None]:
        """A part in memory, and its captions as text; None where these are not at hand.

        Args:
            part: As for :meth:`pairs`.
            loaded: As there.
            limit: As there.
            seed: As there.

        Returns:
            Both; a caption per row of tokens.
        """
        if self.data == EMOJI:
            scenes = emoji_scenes(*self._scenes(part, limit), seed)
            captions = [caption for _, caption in scenes]
            images = torch.stack([loaded.preprocess(Image.fromarray(pixels)) for pixels, _ in scenes])
            return Pairs(images, loaded.tokenizer(captions)), captions
        dataset = self.dataset(part, loaded)
        pairs = gather_pairs(dataset, limit)
        if isinstance(dataset, ShardedPairs) or dataset.skipped.samples:  # rows would not be those of the entries
            return pairs, None
        return pairs, [caption for entry in dataset.entries[:limit] for caption in entry.captions]

    def batches(
        self,
        part: Part,
        loaded: LoadedModel,
        batch_size: int,
        *,
        limit: int | None,
        seed: int,
        workers: int,
        memory: bool,
    ) -> Pairs | PairLoader:
        """A part to train on: in memory, or read as it is needed, each rank its share.

        Args:
            part: Which.
            loaded: Prepares images and captions.
            batch_size: Over all ranks.
            limit: How many images, if in memory.
            seed: Which draw of emoji scenes.
            workers: Processes that read.
            memory: Whether to hold it in memory; emoji scenes always are.

        Returns:
            Pairs, or batches.
        """
        if self.data == EMOJI or memory:
            return self.pairs(part, loaded, limit, seed)
        dataset = self.dataset(part, loaded)
        ranks = int(os.environ.get("WORLD_SIZE", "1"))
        options: dict[str, Any] = {"batch_size": batch_size // ranks, "num_workers": workers, "drop_last": True}
        if isinstance(dataset, ImagePairs):
            rank = int(os.environ.get("RANK", "0"))
            options["sampler"] = DistributedSampler(dataset, ranks, rank, seed=seed, drop_last=True)
        return PairLoader(dataset, **options)

    def dataset(self, part: Part, loaded: LoadedModel) -> ImagePairs | ShardedPairs:
        """A part as a dataset; not of emoji scenes, which are made.

        Args:
            part: Which.
            loaded: Prepares images and captions.

        Returns:
            The dataset.
        """
        whole: Any = open_pairs(  # either kind; split_pairs returns the same kind
            self.data,
            loaded.preprocess,
            loaded.tokenizer,
            root=None if self.root is None else Path(self.root),
            split=self.split,
            image_key=self.image_key,
            caption_key=self.caption_key,
            max_skipped=self.max_skipped,
        )
        shares: dict[str, Any] = {"calibration": self.calibration, "test": self.test, "seed": self.split_seed}
        found: ImagePairs | ShardedPairs = (
            whole if part is Part.all else getattr(split_pairs(whole, **shares), part.value)
        )
        return found

    def _scenes(self, part: Part, limit: int | None) -> tuple[Any, int]:
        if part is Part.all:
            raise ValueError("part must be calibration, train or test for the emoji scenes; found 'all'.")
        return part.value, limit or SIZES[part.value]
