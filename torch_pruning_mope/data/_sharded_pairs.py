"""WebDataset shards of images with captions, as an iterable dataset."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from PIL import Image
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from ..errors import DataError
from ._decode import Unusable, prepare
from ._image_pairs import Captions, Described, check_captions, position
from ._shards import expand_shards, has_caption_lines, read_sample, webdataset
from ._skipped import Counted, Skipped
from ._tar import Sample, read_shard

LONG = 10_000  # samples, after which more than `max_skipped` of them end the epoch


class ShardedPairs(Counted, IterableDataset[tuple[Tensor, Tensor]]):
    """Images with captions from WebDataset shards, a stream of `(image, tokens)`.

    A sample is an image (`jpg`, `png`, `jpeg`, `webp`) with a caption: its `txt`, as open_clip has it, or else what stands
    in its `json` under `caption_key`, a string or a list of strings. In CLIP_benchmark's sets for retrieval, each line of `txt`
    is a caption. What cannot be read is left out and counted in
    `skipped`; a sample is counted each time that it is met, and what is lost with a broken shard is not known, so bad shards
    have a share of their own. When an epoch ends in the main process, a warning says what was skipped; with the workers of a
    DataLoader, a `PairLoader` does that, or call `check_skipped` after the epoch.

    Shards are divided among the ranks, and those of a rank among the workers of its DataLoader, so that no sample comes twice
    in a pass. Order and captions depend on `seed`, the epoch (`set_epoch`), rank and worker alone.

    Args:
        shards: A path, folder, glob (`*.tar`), brace pattern (`{000..127}.tar`), a URL (`https:`, `hf:`, …), or a
            list of these. A `Path` is never read as a URL.
        preprocess: From a picture to the model's input.
        tokenizer: From captions to tokens.
        caption_key: Where a sample's `json` has the caption.
        shuffle: Size of the buffer to draw samples from; shards are shuffled too. 0 keeps their order.
        resample: Draws shards at random with replacement, which evens out the work of ranks and workers.
        samples: Of an epoch, over all ranks and workers; passes are repeated as need be. None: one pass, in which ranks may
            differ in length.
        by_rank: Whether ranks get different shards; False if something else divides the stream, such as Accelerate.
        captions: Which caption an item has, `random` or `first`.
        max_skipped: The share of samples, and of shards, that may be unreadable.
        seed: Of all draws.
        allow_commands: Takes URLs that run a command: `pipe:`, `gs:`, `s3:` and others that WebDataset knows.
        follow_links: Reads shards that a folder or pattern finds by links that lead elsewhere.

    Raises:
        DataError: WebDataset is not installed, a pattern fits nothing, a URL is of no kind that it takes, or too many
            shards are missing.
        ValueError: An option is out of range.
    """

    def __init__(
        self,
        shards: str | Path | Sequence[str | Path],
        preprocess: Callable[[Image.Image], Tensor],
        tokenizer: Callable[[Sequence[str]], Tensor],
        *,
        caption_key: str = "caption",
        shuffle: int = 0,
        resample: bool = False,
        samples: int | None = None,
        by_rank: bool = True,
        captions: Captions = "random",
        max_skipped: float = 0.1,
        seed: int = 0,
        allow_commands: bool = False,
        follow_links: bool = False,
    ) -> None:
        check_captions(captions)
        if shuffle < 0:
            raise ValueError(f"shuffle: must be the size of a buffer, at least 0, found {shuffle}; 1000 is usual")
        if samples is None and resample:
            raise ValueError("samples: resampling has no end, found None; say how many samples make an epoch")
        if samples is not None and samples < 1:
            raise ValueError(f"samples: must be at least 1, found {samples}; leave it out for one pass")
        self.allow_commands = allow_commands
        self.urls, problems = expand_shards(shards, allow_commands=allow_commands, follow_links=follow_links)
        missing = Skipped.of(problems, 0)
        dropped = dataclasses.replace(missing, shards=len(self.urls) + len(problems))
        name = str(shards) if isinstance(shards, str | Path) else f"{shards[0]} and {len(shards) - 1} more"
        super().__init__(name, max_skipped, seed, dropped, expected=(LONG, len(self.urls)))
        self.preprocess, self.tokenizer = preprocess, tokenizer
        self.caption_key, self.captions = caption_key, captions
        self.shuffle, self.resample, self.samples, self.by_rank = shuffle, resample, samples, by_rank
        self._lines = has_caption_lines(self.urls[0])
        self._ranges: tuple[tuple[int, float, float], ...] = ()

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        rank, world, worker, workers = webdataset().utils.pytorch_worker_info()
        if not self.by_rank:
            rank, world = 0, 1
        rng = random.Random(f"{self.seed} {self.epoch} {rank} {worker}")
        if self.samples is None:
            stream = self._pass(rng, self.epoch, rank, world, worker, workers)
        else:
            quota = self.samples // world  # equal, since a rank without a batch would keep the others waiting
            quota = quota * (worker + 1) // workers - quota * worker // workers
            stream = itertools.islice(self._passes(rng, rank, world, worker, workers), quota)
        for described in stream:
            which = 0 if self.captions == "first" else rng.randrange(len(described.tokens))
            yield described.image, described.tokens[which]
        if get_worker_info() is None:
            self.check_skipped()

    def one_pass(self) -> Iterator[Described]:
        """Iterates once over all samples with all their captions, in order; each rank over all of them.

        Yields:
            What can be read.
        """
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        for url in self.urls[worker::workers]:
            yield from self._usable(self._shard(url))

    def select(self, low: float, high: float, name: str, *, seed: int = 0) -> ShardedPairs:
        """Returns a dataset of the samples whose hash, by seed, shard and key, lies in a range of [0, 1)."""
        part = copy.copy(self)
        part._ranges = (*self._ranges, (seed, low, high))
        part.name = name
        part._restart()
        return part

    def _passes(self, rng: random.Random, rank: int, world: int, worker: int, workers: int) -> Iterator[Described]:
        """Repeats passes without end."""
        for number in itertools.count():
            found = False
            for described in self._pass(rng, f"{self.epoch} {number}", rank, world, worker, workers):
                found = True
                yield described
            if not found:
                raise DataError(
                    f"{self.name}: every worker of every rank needs shards with samples, found {len(self.urls)} shards for "
                    f"{world * workers} workers ({self.skipped}); use fewer workers, or resample=True"
                )

    def _pass(
        self, rng: random.Random, number: object, rank: int, world: int, worker: int, workers: int
    ) -> Iterator[Described]:
        """Returns one pass over the shards of one worker, or as many draws of shards as there are."""
        urls = list(self.urls)
        if self.resample:
            urls = rng.choices(urls, k=len(urls))
        else:
            if self.shuffle:  # the same in all workers, which then take different ones
                random.Random(f"{self.seed} {number}").shuffle(urls)
            urls = urls[rank::world][worker::workers]
        samples = itertools.chain.from_iterable(map(self._shard, urls))
        if self.shuffle:
            samples = webdataset().shuffle(self.shuffle, initial=self.shuffle, rng=rng)(samples)
        return self._usable(samples)

    def _shard(self, url: str) -> Iterator[Sample]:
        """Reads a shard; a file that is missing or broken ends it."""
        self._count_shard()
        count, failed = 0, False

        def note(error: Exception) -> bool:
            nonlocal failed
            said = getattr(error, "strerror", None) or (error.args[0] if error.args else "")
            text = f"{type(error).__name__}: {said}"
            if isinstance(error, ValueError):  # a name that comes twice
                self._skip("entry malformed", f"{url}: {text}")
            elif not failed:
                failed = True
                self._skip("shard unreadable", f"{url}: {text}")
            return True

        for sample in read_shard(url, note, allow_commands=self.allow_commands):
            count += 1
            if self._mine(url, sample["__key__"]):
                yield sample
        if not count and not failed:
            self._skip("shard empty", url)

    def _mine(self, url: str, key: str) -> bool:
        sample = f"{url.rpartition('/')[2]} {key}"
        return all(low <= position(seed, sample) < high for seed, low, high in self._ranges)

    def _usable(self, samples: Iterator[Sample]) -> Iterator[Described]:
        for sample in samples:
            where = f"{sample['__url__']}: {sample['__key__']}"
            try:
                picture, captions = read_sample(sample, self.caption_key, where, caption_lines=self._lines)
            except Unusable as unusable:
                self._skip(*unusable.problem)
                continue
            self._count_read()
            yield Described(prepare(picture, self.preprocess, where), self.tokenizer(list(captions)))
