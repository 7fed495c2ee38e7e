"""What a run folder holds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from ..distillation import TrainingStep
from ..planning import Plan
from ..planning._footprint import TOWERS
from ..scoring import ScoreTable, Unit
from ..scoring._units import KINDS
from ._evaluation import Evaluation, read_evaluation
from ._examples import ChangedExamples
from ._text import clean
from ._training import read_training

T = TypeVar("T")
_MOST = 1 << 16
"""Layers, or units of one, that a model may have."""

MAKERS = {
    "scores.json": "ScoreTable.save",
    "plan.json": "Plan.save",
    "evaluation.json": "an evaluation of the models",
    "training.jsonl": "append_jsonl, from distil's on_step",
    "examples.json": "changed_examples",
}
"""Which files there may be, and what makes them."""
STAGE_FILES = {"scores.json": "width.json", "plan.json": "width-plan.json"}
"""What a stage calls its first scores and plan."""


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        name: Of its folder.
        config: Its ``config.yaml`` as it stands there.
        scores: Scores of the dense model's units.
        plan: What was removed.
        evaluation: What the models are and do.
        training: Steps of distillation.
        examples: Queries answered differently.
        missing: Files that are not there.
        notes: What does not fit together.
    """

    name: str
    config: str | None = None
    scores: ScoreTable | None = None
    plan: Plan | None = None
    evaluation: list[Evaluation] = field(default_factory=list)
    training: list[TrainingStep] = field(default_factory=list)
    examples: ChangedExamples | None = None
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def read_run(folder: Path) -> Run:
    """Reads what a run folder holds.

    Args:
        folder: The folder.

    Returns:
        The run; what is not there is missing from it.

    Raises:
        FileNotFoundError: If there is no such folder, or nothing to report in it.
        ValueError: If a file is damaged.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"run_folder must be a folder; found none at {folder}.")
    files = {name: _file(folder, name) for name in MAKERS}
    missing = tuple(name for name in MAKERS if not files[name].is_file())
    if len(missing) == len(MAKERS):
        raise FileNotFoundError(
            f"run_folder must hold one of {', '.join(MAKERS)} at least; found none of them in {folder}. Score a model first: "
            'mope.score(encoder, pairs).save("run/scores.json").'
        )

    def read(name: str, reader: Callable[[Path], T]) -> T | None:
        return None if name in missing else reader(files[name])

    config = folder / "config.yaml"
    scores, plan = read("scores.json", ScoreTable.load), read("plan.json", Plan.load)
    _check_units(files["scores.json"], [] if scores is None else [score.unit for score in scores.scores])
    _check_units(files["plan.json"], [] if plan is None else plan.units)
    return Run(
        name=clean(folder.resolve().name),
        config=clean(config.read_text(encoding="utf-8", errors="replace")) if config.is_file() else None,
        scores=scores,
        plan=plan,
        evaluation=read("evaluation.json", read_evaluation) or [],
        training=read("training.jsonl", read_training) or [],
        examples=read("examples.json", ChangedExamples.load),
        missing=missing,
        notes=_notes(scores, plan),
    )


def _file(folder: Path, name: str) -> Path:
    """A file of the run, or what a stage has in its place."""
    path = folder / name
    return folder / STAGE_FILES.get(name, name) if not path.is_file() else path


def _check_units(path: Path, units: Sequence[Unit]) -> None:
    """Refuses units that no model has; figures would be drawn for them all the same."""
    wrong = [
        unit
        for unit in units
        if unit.kind not in KINDS
        or unit.tower not in TOWERS
        or not all(isinstance(place, int) and 0 <= place < _MOST for place in (unit.layer, unit.index))
    ]
    if wrong:
        raise ValueError(f"{path} must be of units of a model; found {wrong[0]!r}. Write it again, or delete it.")


def _notes(scores: ScoreTable | None, plan: Plan | None) -> tuple[str, ...]:
    if scores is not None and plan is not None and plan.weights not in {None, scores.weights}:
        return ("The plan is of a model of other weights than the scores: they are not of the same run.",)
    return ()
