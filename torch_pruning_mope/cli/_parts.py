"""The parts of a source's pairs: the embedded emoji scenes, or what ``open_pairs`` reads."""

import hashlib
import json
import os
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DistributedSampler

from ..data import ImagePairs, PairLoader, Pairs, ShardedPairs, emoji_scenes, gather_pairs, open_pairs, split_pairs
from ..loading import LoadedModel
from ..runs import RunFolder
from ._source import EMOJI, Part, Source

SIZES = {"calibration": 1000, "train": 10_000, "test": 3000}
"""Default number of emoji scenes in each part; there is no end of them."""


class Parts:
    """Pairs in parts that share no image."""

    def __init__(
        self, source: Source, loaded: LoadedModel, folder: RunFolder | None = None, *, progress: bool = True
    ) -> None:
        self.source, self._loaded, self._progress = source, loaded, progress
        if folder is not None:
            folder.check({"data": self.digest})

    @cached_property
    def digest(self) -> str:
        """SHA-256 of which pairs there are, in which parts; of names and captions, not of pictures."""
        whole = None if self.source.data == EMOJI else self._whole
        listed: list[Any] = []
        if isinstance(whole, ShardedPairs):
            listed = [Path(url).name for url in whole.urls]
        elif whole is not None:
            listed = [[entry.name, entry.captions] for entry in whole.entries]
        return hashlib.sha256(json.dumps([self.source.division(), listed]).encode()).hexdigest()

    def scored(self) -> Pairs:
        """The calibration pairs that units are scored on."""
        return self.pairs(Part.calibration, self.source.pairs or 1000)

    def pairs(self, part: Part, limit: int | None = None, seed: int | None = None) -> Pairs:
        """A part in memory; ``limit`` is of images (None: all, or the usual number of scenes), ``seed`` of drawn scenes."""
        return self.with_captions(part, limit, seed)[0]

    def with_captions(
        self, part: Part, limit: int | None = None, seed: int | None = None
    ) -> tuple[Pairs, list[str] | None]:
        """A part in memory as for :meth:`pairs`, and a caption per row of tokens as text; None where these are not at hand."""
        if self.source.data == EMOJI:
            number = limit or SIZES[_emoji_part(part)]
            scenes = emoji_scenes(_emoji_part(part), number, self.source.seed if seed is None else seed)  # type: ignore[arg-type]
            captions = [caption for _, caption in scenes]
            images = torch.stack([self._loaded.preprocess(Image.fromarray(pixels)) for pixels, _ in scenes])
            return Pairs(images, self._loaded.tokenizer(captions)), captions
        dataset = self.dataset(part)
        pairs = gather_pairs(dataset, limit, progress=self._progress)
        if isinstance(dataset, ShardedPairs) or dataset.skipped.samples:  # rows would not be those of the entries
            return pairs, None
        return pairs, [caption for entry in dataset.entries[:limit] for caption in entry.captions]

    def batches(
        self, part: Part, *, batch_size: int, limit: int | None, seed: int, workers: int, memory: bool
    ) -> Pairs | PairLoader:
        """A part to train on: in memory (emoji scenes always), or read as it is needed, each rank its share."""
        if self.source.data == EMOJI or memory:
            return self.pairs(part, limit, seed)
        dataset = self.dataset(part)
        ranks = int(os.environ.get("WORLD_SIZE", "1"))
        options: dict[str, Any] = {"batch_size": batch_size // ranks, "num_workers": workers, "drop_last": True}
        if isinstance(dataset, ImagePairs):
            rank = int(os.environ.get("RANK", "0"))
            options["sampler"] = DistributedSampler(dataset, ranks, rank, seed=seed, drop_last=True)
        return PairLoader(dataset, **options)

    def dataset(self, part: Part) -> ImagePairs | ShardedPairs:
        """A part as a dataset; not of emoji scenes, which are made."""
        if part is Part.all:
            return self._whole
        source = self.source
        whole: Any = self._whole  # either kind; split_pairs returns the same kind
        parts = split_pairs(whole, calibration=source.calibration, test=source.test, seed=source.split_seed)
        found: ImagePairs | ShardedPairs = getattr(parts, part.value)
        return found

    @cached_property
    def _whole(self) -> ImagePairs | ShardedPairs:
        source = self.source
        return open_pairs(
            source.data,
            self._loaded.preprocess,
            self._loaded.tokenizer,
            root=None if source.root is None else Path(source.root),
            split=source.split,
            image_key=source.image_key,
            caption_key=source.caption_key,
            encoding=source.encoding,
            max_skipped=source.max_skipped,
            allow_commands=source.allow_commands,
            follow_links=source.follow_links,
        )


def _emoji_part(part: Part) -> str:
    if part is Part.all:
        raise ValueError("part must be calibration, train or test for the emoji scenes; found 'all'.")
    return part.value
