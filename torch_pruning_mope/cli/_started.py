"""A run that has begun, as later commands see it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from ..checkpoint import load
from ..dual_encoder import DualEncoder
from ..loading import LoadedModel
from ..runs import RunFolder, shown
from ..scoring import ScoreTable, fingerprint
from ._command import Call
from ._parts import Parts
from ._source import OtherData, Part, Source

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
