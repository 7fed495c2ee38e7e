"""A run's folder: what was asked for, what was done, and the lines of training."""

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .._io import write_whole
from ..distillation import TrainingStep

_log = logging.getLogger(__name__)


class RunFolder:
    """The folder of a run. Under ``torchrun``, the first rank alone writes.

    Args:
        path: The folder; made if it is not there.
        about: What the run is, in JSON's types.

    Raises:
        ValueError: If it holds another run.
    """

    def __init__(self, path: str | Path, about: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self._writes = os.environ.get("RANK", "0") == "0"
        self.path.mkdir(parents=True, exist_ok=True)
        file = self.path / "stage.json"
        self.is_new = not file.exists()
        if self.is_new:
            self.write("stage.json", json.dumps(about, indent=1) + "\n")
            return
        try:
            found = dict(json.loads(file.read_text(encoding="utf-8")))
        except (TypeError, ValueError) as error:
            raise ValueError(f"path must hold a run; {file} is damaged: {error}. Choose another path.") from error
        differing = sorted(name for name in about.keys() | found.keys() if found.get(name) != about.get(name))
        if differing:
            raise ValueError(
                f"path must be free, or of the same run; the one at {self.path} has other {', '.join(differing)}. Choose "
                "another path, or pass the model and arguments of that run."
            )

    def write(self, name: str, content: str) -> None:
        """Writes a file, whole or not at all.

        Args:
            name: Its place in the folder.
            content: What it holds.
        """
        if self._writes:
            write_whole(self.path / name, content)

    def tell(self, step: str, what: str) -> None:
        """Notes what was done.

        Args:
            step: The step.
            what: What was done, or found done.
        """
        _log.info("%s: %s", step, what)
        if self._writes:
            with (self.path / "steps.log").open("a", encoding="utf-8") as file:
                file.write(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} {step}: {what}\n")

    def training_log(self, training: str) -> "TrainingLog":
        """Where the steps of one training go."""
        return TrainingLog(self, training)

    def lines(self, training: str, before: Callable[[int], bool]) -> list[str]:
        """Lines of the log of training, without some steps of one training.

        Args:
            training: Which.
            before: Which of its steps are kept.

        Returns:
            The lines. One that was cut off as it was written is not among them.
        """
        file = self.path / "training.jsonl"
        kept = []
        for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if entry["training"] != training or before(entry["step"]):
                kept.append(line)
        return kept


class TrainingLog:
    """Lines of one training in the run's ``training.jsonl``.

    Args:
        folder: The run's folder.
        training: Its name.
    """

    def __init__(self, folder: RunFolder, training: str) -> None:
        self._folder, self._training = folder, training
        self._begun = False

    def add(self, entry: TrainingStep) -> None:
        """Adds a line; before the first, takes out those that an interrupted run wrote past its checkpoint."""
        if not self._begun:
            lines = self._folder.lines(self._training, lambda step: step < entry.step)
            self._folder.write("training.jsonl", "".join(f"{line}\n" for line in lines))
            self._begun = True
        with (self._folder.path / "training.jsonl").open("a", encoding="utf-8") as file:
            file.write(self._line(entry) + "\n")

    def finish(self, history: Sequence[TrainingStep]) -> None:
        """Writes all lines of this training, whatever an interruption left of them."""
        lines = [*self._folder.lines(self._training, lambda _: False), *map(self._line, history)]
        self._folder.write("training.jsonl", "".join(f"{line}\n" for line in lines))

    def _line(self, entry: TrainingStep) -> str:
        return json.dumps({"training": self._training, **asdict(entry)})
