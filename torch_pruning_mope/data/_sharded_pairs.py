"""WebDataset shards of images with captions, as an iterable dataset."""

import copy
import dataclasses
import itertools
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from ..errors import DataError
from ._decode import Preprocess, Tokenizer, prepare
from ._image_pairs import Described, position
from ._shards import Sample, expand_shards, has_caption_lines, read_sample, read_shard, webdataset
from ._skipped import Captions, Counted, Problem, Skipped

LONG = 10_000  # samples, after which more than `max_skipped` of them end the pass


class ShardedPairs(Counted, IterableDataset[tuple[Tensor, Tensor]]):
    """Images with captions from WebDataset shards, a stream of `(image, tokens)`.

    A sample is an image (`jpg`, `png`, `jpeg`, `webp`) with a caption: its `txt`, as open_clip has it, or else the value of
    `caption_key` in its `json`, a string or a list of strings. In CLIP_benchmark's sets for retrieval, each line of `txt` is a
    caption. Unreadable samples are left out and counted in `skipped`; the samples lost with a broken shard are not known, so
    bad shards have a share of their own. A pass ends with `check_skipped`: in a `PairLoader` for all workers together, in
    another DataLoader for each worker by itself.

    Shards are divided among the ranks, and those of a rank among the workers of its DataLoader, so that no sample comes twice
    in a pass. Order and captions depend on `seed`, the epoch (`set_epoch`), rank and worker alone.
    """

    def __init__(
        self,
        shards: str | Path | Sequence[str | Path],
        preprocess: Preprocess,
        tokenizer: Tokenizer,
        *,
        caption_key: str = "caption",
        shuffle: int = 0,
        samples: int | None = None,
        captions: Captions = "random",
        max_skipped: float = 0.1,
        seed: int = 0,
        allow_commands: bool = False,
        follow_links: bool = False,
    ) -> None:
        if shuffle < 0:
            raise ValueError(f"shuffle must be the size of a buffer, at least 0; found {shuffle}. 1000 is usual.")
        if samples is not None and samples < 1:
            raise ValueError(f"samples must be at least 1; found {samples}. Leave it out for one pass.")
        self.urls, problems = expand_shards(shards, allow_commands=allow_commands, follow_links=follow_links)
        dropped = dataclasses.replace(Skipped.of(problems), shards=len(self.urls) + len(problems))
        name = str(shards) if isinstance(shards, str | Path) else f"{shards[0]} and {len(shards) - 1} more"
        super().__init__(name, captions, max_skipped, seed, dropped, expected=(LONG, len(self.urls)))
        self.preprocess, self.tokenizer = preprocess, tokenizer
        self.caption_key, self.allow_commands = caption_key, allow_commands
        self.shuffle, self.samples = shuffle, samples
        self._lines = has_caption_lines(self.urls[0])
        self._ranges: tuple[tuple[int, float, float], ...] = ()

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if not self._reports:
            self.skipped = Skipped()
        rank, world, worker, workers = webdataset().utils.pytorch_worker_info()
        rng = random.Random(f"{self.seed} {self.epoch} {rank} {worker}")
        own = slice(rank + world * worker, None, world * workers)
        if self.samples is None:
            stream = self._pass(rng, self.epoch, own)
        else:
            quota = self.samples // world  # equal, since a rank without a batch would keep the others waiting
            quota = quota * (worker + 1) // workers - quota * worker // workers
            stream = itertools.islice(self._passes(rng, own), quota)
        for described in stream:
            which = 0 if self.captions == "first" else rng.randrange(len(described.tokens))
            yield described.image, described.tokens[which]
        if self._reports:
            yield None  # type: ignore[misc]  # a batch for the counts after the last one, which the loader takes out
        else:
            self.check_skipped()

    def one_pass(self) -> Iterator[Described | None]:
        """Iterates once over all samples with all their captions, in order; each rank over all of them."""
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        for url in self.urls[worker::workers]:
            yield from self._usable(self._shard(url))
        yield None

    def select(self, low: float, high: float, name: str, *, seed: int = 0) -> "ShardedPairs":
        """Returns a dataset of the samples whose hash, by seed, shard and key, lies in a range of [0, 1)."""
        part = copy.copy(self)
        part._ranges = (*self._ranges, (seed, low, high))
        part.name = name
        part._restart()
        return part

    def _passes(self, rng: random.Random, own: slice) -> Iterator[Described]:
        """Repeats passes without end."""
        for number in itertools.count():
            found = False
            for described in self._pass(rng, f"{self.epoch} {number}", own):
                found = True
                yield described
            if not found:
                raise DataError(
                    f"{self.name} must have shards with samples for every worker of every rank; found {len(self.urls)} shards "
                    f"for {own.step} workers ({self.skipped}). Use fewer workers, or more shards."
                )

    def _pass(self, rng: random.Random, number: object, own: slice) -> Iterator[Described]:
        """Returns one pass over the shards of one worker."""
        urls = list(self.urls)
        if self.shuffle:  # the same in all workers, which then take different ones
            random.Random(f"{self.seed} {number}").shuffle(urls)
        samples = itertools.chain.from_iterable(map(self._shard, urls[own]))
        if self.shuffle:
            samples = webdataset().shuffle(self.shuffle, initial=self.shuffle, rng=rng)(samples)
        return self._usable(samples)

    def _shard(self, url: str) -> Iterator[Sample]:
        """Reads a shard; a file that is missing or broken ends it."""
        self._count(Skipped(shards=1))
        count, failed = 0, False

        def note(error: Exception) -> bool:
            nonlocal failed
            said = getattr(error, "strerror", None) or (error.args[0] if error.args else "")
            where = f"{url}: {type(error).__name__}: {said}"
            if isinstance(error, ValueError):  # a name that comes twice
                self._count(Skipped.of([Problem("entry malformed", where)]))
            elif not failed:
                failed = True
                self._count(Skipped.of([Problem("shard unreadable", where)]))
            return True

        for sample in read_shard(url, note, allow_commands=self.allow_commands):
            count += 1
            if self._mine(url, sample["__key__"]):
                yield sample
        if not count and not failed:
            self._count(Skipped.of([Problem("shard empty", url)]))

    def _mine(self, url: str, key: str) -> bool:
        sample = f"{url.rpartition('/')[2]} {key}"
        return all(low <= position(seed, sample) < high for seed, low, high in self._ranges)

    def _usable(self, samples: Iterator[Sample]) -> Iterator[Described]:
        for sample in samples:
            where = f"{sample['__url__']}: {sample['__key__']}"
            try:
                picture, texts = self._read(sample, where)
            except Problem as problem:
                self._count(Skipped.of([problem]))
                continue
            self._count(Skipped(read=1))
            yield Described(prepare(picture, self.preprocess, where), self.tokenizer(list(texts)))

    def _read(self, sample: Sample, where: str) -> tuple[Image.Image, tuple[str, ...]]:
        """Returns a sample's picture and texts, or raises Problem."""
        return read_sample(sample, self.caption_key, where, caption_lines=self._lines)
