"""A run that has begun, as later commands see it: its model, its pairs in parts, its files, and rivals of its size."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DistributedSampler

from ..checkpoint import load
from ..cost import footprints
from ..data import ImagePairs, PairLoader, Pairs, ShardedPairs, emoji_scenes, gather_pairs, open_pairs, split_pairs
from ..dual_encoder import DualEncoder
from ..importance import stock_scores
from ..loading import LoadedModel
from ..planning import Plan, make_plan
from ..runs import RunFolder, shown
from ..scoring import ScoreTable, fingerprint
from ._command import Call
from ._options import EMOJI, OtherData, Part, Source
from ._prune import RECONSTRUCTION, Reconstruction, refit

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
        names = (
            "root",
            "split",
            "image_key",
            "caption_key",
            "encoding",
            "max_skipped",
            "allow_commands",
            "follow_links",
        )
        options = {name: getattr(source, name) for name in names}
        return open_pairs(source.data, self._loaded.preprocess, self._loaded.tokenizer, **options)


def _emoji_part(part: Part) -> str:
    if part is Part.all:
        raise ValueError("part must be calibration, train or test for the emoji scenes; found 'all'.")
    return part.value


BEGINS = ("score", "compress", "pretrain-stage", "finetune-stage")
"""Commands that set the model and the data of a run."""


class StartedRun:
    """The model, pairs and files of a run; all are compared with what the run began with."""

    def __init__(self, folder: RunFolder, other: OtherData | None = None, *, progress: bool = True) -> None:
        self.folder, self.path, self._progress = folder, folder.path, progress
        settings = folder.settings()
        begun = next((settings[name] for name in BEGINS if name in settings), None)
        if begun is None:
            raise ValueError(
                f"RUN must be a folder that one of {', '.join(f'mope {name}' for name in BEGINS)} began; found no such run in "
                f"{folder.path}. Begin with: mope score {folder.path} --model tiny"
            )
        self.other = other or OtherData()
        own = Source.of(begun)
        self.source = replace(own, allow_commands=self.other.allow_commands, follow_links=self.other.follow_links)
        self.model_name = shown(self.source.model)

    def load(self) -> LoadedModel:
        """The dense model, its attention swapped; an error if its weights are not those that the run began with."""
        loaded = self.source.load()
        encoder = DualEncoder(loaded.model)
        self.folder.check({"weights": fingerprint(encoder.model)})
        return loaded._replace(model=encoder.model)

    def load_saved(self, name: str) -> LoadedModel:
        """The model of one of the run's checkpoints."""
        loaded = load(self.path / name)
        loaded.model.to(self.source.device)
        return loaded

    def parts(self, loaded: LoadedModel) -> Parts:
        """The run's pairs."""
        return Parts(self.source, loaded, self.folder, progress=self._progress)

    def chosen(self, loaded: LoadedModel, part: Part) -> tuple[Parts, Part]:
        """The other pairs, all of them, if they are given, else a part of the run's."""
        if self.other.is_given:
            return Parts(self.other.over(self.source), loaded, progress=self._progress), Part.all
        return self.parts(loaded), part

    def scores(self) -> ScoreTable:
        """The score table; an error if it is not of the run's model and pairs."""
        table = ScoreTable.load(self.needs("scores.json", "score"))
        self.folder.check({"weights": table.weights, "pairs": table.pairs})
        return table

    def needs(self, name: str, command: str) -> Path:
        """A file or folder that another command makes; an error if it is not there."""
        path = self.path / name
        if not path.exists():
            raise ValueError(
                f"RUN must hold {name}; found none in {self.path}. Make it with: mope {command} {self.path}"
            )
        return path

    @property
    def latest(self) -> Path:
        """The checkpoint of the smallest model that has come furthest."""
        return self.folder.latest or self.needs("pruned", "prune")


@contextmanager
def started(call: Call, run: Path, other: OtherData | None = None, *, progress: bool = True) -> Iterator[StartedRun]:
    """Yields a run that is held meanwhile; records the command's settings once it is done."""
    folder = call.folder(run)
    with folder.held():
        yield StartedRun(folder, other, progress=progress)
        folder.record()


def rivals(begun: StartedRun, criteria: Sequence[str]) -> Iterator[tuple[str, LoadedModel]]:
    """The run's model, pruned by other criteria until no more is left than of the run's own smaller model."""
    # They are calibrated on the pairs that the run was scored on. Widths are rounded, and layers kept, as the run's
    # plan says.
    if not criteria:
        return
    left = footprints(DualEncoder(load(begun.latest).model))
    path = begun.path / "plan.json"
    rules: Mapping[str, Any] = Plan.load(path).settings if path.exists() else {}
    measure = rules.get("cost", "parameters")
    amounts = {tower: getattr(size, measure) for tower, size in left.items()}
    by_tower = any(isinstance(budget, Mapping) for budget in rules.get("budgets", {}).values())
    options: dict[str, Any] = {measure: amounts if by_tower else sum(amounts.values())}
    options |= {name: rules[name] for name in ("round_to", "uniform", "min_heads", "min_neurons") if name in rules}
    for criterion in criteria:
        loaded = begun.load()
        encoder = DualEncoder(loaded.model)
        table = stock_scores(encoder, begun.parts(loaded).scored(), criterion, seed=begun.source.seed)  # type: ignore[arg-type]
        # Putting back what fits would count a copy of the model for each of thousands of neurons.
        make_plan(encoder, table, refill=False, **options).apply(encoder)
        if (begun.path / RECONSTRUCTION).exists():  # as the run's own model was
            settings = begun.folder.settings()
            how = next((settings[name] for name in ("reconstruct", "prune") if name in settings), {})
            known = {field.name for field in fields(Reconstruction)}
            how = {name: Part(value) if name == "part" else value for name, value in how.items() if name in known}
            refit(begun, encoder, Reconstruction(**how), progress=False)
        yield criterion, loaded
