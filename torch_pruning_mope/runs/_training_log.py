"""The steps of a run's trainings, a line of JSON each, in ``training.jsonl``."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path

from .._io import open_regular, parse_json, typed
from ..distillation import TrainingStep
from ._folder import TRAINING, RunFolder


class TrainingLog:
    """The lines of one training. An interrupted run may have left more than its last checkpoint knows of, or a torn line."""

    def __init__(self, folder: RunFolder, training: str = "training") -> None:
        self._folder, self._training = folder, training
        self.has_begun = False

    def add(self, entry: TrainingStep) -> None:
        """Adds a line; before the first, takes out those that an interrupted run wrote past its checkpoint."""
        if not self._folder.writes:
            return
        if not self.has_begun:
            self._write(self._lines(lambda step: step < entry.step))
            self.has_begun = True
        with (self._folder.path / TRAINING).open("a", encoding="utf-8") as file:
            file.write(self._line(entry) + "\n")

    def finish(self, history: Sequence[TrainingStep]) -> None:
        """Writes all lines of this training, whatever an interruption left of them."""
        self._write([*self._lines(lambda _: False), *map(self._line, history)])

    def _write(self, lines: list[str]) -> None:
        self._folder.write(TRAINING, "".join(f"{line}\n" for line in lines))

    def _line(self, entry: TrainingStep) -> str:
        return json.dumps({"training": self._training, **asdict(entry)})

    def _lines(self, kept: Callable[[int], bool]) -> list[str]:
        """The whole lines of the log; of this training those of some steps."""
        file = self._folder.path / TRAINING
        found = []
        for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
            try:
                entry = parse_json(line)
                if entry["training"] != self._training or kept(entry["step"]):
                    found.append(line)
            except (KeyError, TypeError, ValueError):
                continue
        return found


def read_training(path: Path) -> list[TrainingStep]:
    """Reads a log, but for a last line that a killed process left torn; raises ValueError if another is none."""
    with open_regular(path) as file:
        lines = file.read().decode("utf-8", "replace").split("\n")
    names = {field.name for field in fields(TrainingStep)}
    steps = []
    for number, line in enumerate(lines, start=1):
        try:
            if line.strip():
                entry = parse_json(line)
                steps.append(typed(TrainingStep, {name: entry[name] for name in names & entry.keys()}))
        except (AttributeError, TypeError, ValueError) as error:
            if number < len(lines):
                raise ValueError(f"line {number}: {error!r}") from error
    return steps
