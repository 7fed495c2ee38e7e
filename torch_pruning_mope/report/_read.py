"""Contents of a run folder."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from .._io import open_regular, parse_json, read_json
from ..distillation import TrainingStep
from ..planning import Plan
from ..scoring import ScoreTable
from ..towers import KINDS, Unit
from ._examples import ChangedExamples
from ._text import clean, without_paths

T = TypeVar("T")
TOWERS = ("image", "text")
STAGES = ("dense", "pruned", "reconstructed", "distilled", "shipped")
SIZES = ("parameters", "multiply_adds", "latency_ms")
RECALLS = ("i2t_r1", "i2t_r5", "i2t_r10", "t2i_r1", "t2i_r5", "t2i_r10")
_MOST_LAYERS, _MOST_UNITS = 1_000, 100_000
ACCURACIES = {"top1": "top-1", "top5": "top-5", "mean_per_class": "mean per class"}
MAKERS = {
    "scores.json": "ScoreTable.save",
    "plan.json": "Plan.save",
    "evaluation.json": "save_evaluation",
    "training.jsonl": "append_jsonl, the on_step of distill",
    "examples.json": "changed_examples",
}
"""Files of a run, and what writes them."""
_STAGE_FILES = {"scores.json": "width.json", "plan.json": "width-plan.json"}
"""The names that a stage has for its first scores and plan."""


@dataclass(frozen=True)
class Evaluation:
    """One row of ``evaluation.json``: numbers by name, recalls and accuracies in percent."""

    model: str
    criterion: str
    stage: str
    about: str
    numbers: Mapping[str, float]

    def get(self, name: str) -> float | None:
        """A number, if it was measured."""
        return self.numbers.get(name)

    @property
    def label(self) -> str:
        """Criterion and stage."""
        return "dense" if self.stage == "dense" else ", ".join(filter(None, [self.criterion, self.stage]))

    @property
    def r1(self) -> float | None:
        """Mean R@1 of both directions."""
        both = [self.numbers[name] for name in ("i2t_r1", "t2i_r1") if name in self.numbers]
        return sum(both) / 2 if len(both) == 2 else None


@dataclass(frozen=True)
class Run:
    """One run; None or empty where the folder holds nothing."""

    name: str
    config: str | None = None
    scores: ScoreTable | None = None
    plan: Plan | None = None
    evaluation: list[Evaluation] = field(default_factory=list)
    training: list[TrainingStep] = field(default_factory=list)
    examples: ChangedExamples | None = None
    missing: tuple[str, ...] = ()


def read_run(folder: Path) -> Run:
    """Reads a run folder; raises FileNotFoundError if it holds nothing to report, ValueError if a file is damaged."""
    if not folder.is_dir():
        raise FileNotFoundError(f"run_folder must be a folder; found none at {folder}.")
    files = {name: folder / name for name in MAKERS}
    files |= {name: folder / stage for name, stage in _STAGE_FILES.items() if not files[name].is_file()}
    missing = tuple(name for name in MAKERS if not files[name].is_file())
    if len(missing) == len(MAKERS):
        raise FileNotFoundError(
            f"run_folder must hold one of {', '.join(MAKERS)} at least; found none of them in {folder}. Score a model first: "
            'mope.score(encoder, pairs).save("run/scores.json").'
        )

    def read(name: str, reader: Callable[[Path], T]) -> T | None:
        if name in missing:
            return None
        try:
            return reader(files[name])
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
            raise ValueError(
                f"{files[name]} must be written by {MAKERS[name]}; found otherwise: {error}. Delete it, or write it again."
            ) from error

    config = folder / "config.yaml"
    scores, plan = read("scores.json", ScoreTable.load), read("plan.json", Plan.load)
    _check_units(files["scores.json"], [] if scores is None else [score.unit for score in scores.scores])
    _check_units(files["plan.json"], [] if plan is None else plan.units)
    return Run(
        name=folder.resolve().name,
        config=without_paths(_text(config)) if config.is_file() else None,
        scores=scores,
        plan=plan,
        evaluation=read("evaluation.json", read_evaluation) or [],
        training=read("training.jsonl", read_training) or [],
        examples=read("examples.json", ChangedExamples.load),
        missing=missing,
    )


def _check_units(path: Path, units: Sequence[Unit]) -> None:
    """Refuses units of no model: towers and kinds name files, places are sizes of figures."""
    for unit in units:
        places = isinstance(unit.layer, int) and isinstance(unit.index, int)
        if unit.tower not in TOWERS or unit.kind not in KINDS or not places or not 0 <= unit.layer < _MOST_LAYERS:
            raise ValueError(f"{path} must be of units of a model; found {unit!r}. Write it again, or delete it.")
        if not 0 <= unit.index < _MOST_UNITS:
            raise ValueError(f"{path} must be of at most {_MOST_UNITS} units per layer; found {unit!r}. Delete it.")


def read_evaluation(path: Path) -> list[Evaluation]:
    """Reads ``evaluation.json``: dense first, then stage by stage of each criterion, MoPE before the others."""
    rows = [_evaluation(row) for row in read_json(path)["rows"]]
    criteria = list(dict.fromkeys([own_criterion(rows), *(row.criterion for row in rows)]))

    def place(row: Evaluation) -> tuple[int, int]:
        stage = STAGES.index(row.stage) if row.stage in STAGES else len(STAGES)
        return (-1 if stage == 0 else criteria.index(row.criterion), stage)

    return sorted(rows, key=place)


def read_training(path: Path) -> list[TrainingStep]:
    """Reads ``training.jsonl``, but for a last line that a killed process left torn."""
    lines = _text(path).split("\n")
    steps = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            entry = parse_json(line)
            terms = {str(clean(name)): float(value) for name, value in entry.get("terms", {}).items()}
            steps.append(
                TrainingStep(int(entry["step"]), float(entry["loss"]), terms, float(entry.get("learning_rate", 0.0)))
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            if number < len(lines):
                raise ValueError(f"line {number}: {error!r}") from error
    return steps


def by_data(rows: Sequence[Evaluation]) -> dict[str, list[Evaluation]]:
    """Rows by the data that they were evaluated on."""
    found: dict[str, list[Evaluation]] = {}
    for row in rows:
        found.setdefault(row.about, []).append(row)
    return found


def models_of(rows: Sequence[Evaluation]) -> list[Evaluation]:
    """One row per model, one with a latency if there is any."""
    found: dict[tuple[str, str, str], Evaluation] = {}
    for row in rows:
        key = (row.model, row.criterion, row.stage)
        if key not in found or (found[key].get("latency_ms") is None and row.get("latency_ms") is not None):
            found[key] = row
    return list(found.values())


def labels(rows: Sequence[Evaluation]) -> list[str]:
    """Criterion and stage of each row, and the model's name where that is not unique."""
    short = [row.label for row in rows]
    return [name if short.count(name) == 1 else f"{row.model}: {name}" for name, row in zip(short, rows, strict=True)]


def own_criterion(rows: Sequence[Evaluation]) -> str:
    """The criterion that the report is about: MoPE, else the first of a pruned model."""
    found = [row.criterion for row in rows if row.stage != "dense"]
    return next((name for name in found if name.lower().startswith("mope")), found[0] if found else "")


def _evaluation(row: Mapping[str, Any]) -> Evaluation:
    words = {name: str(clean(without_paths(row.get(name) or ""))) for name in ("model", "criterion", "stage")}
    about = [str(row[name]) for name in ("task", "data", "part") if row.get(name)]
    numbers = {name: float(row[name]) for name in (*SIZES, *RECALLS, *ACCURACIES, "pairs") if row.get(name) is not None}
    if not all(map(math.isfinite, numbers.values())):
        raise ValueError(f"numbers must be finite: {numbers}")
    return Evaluation(**words, about=str(clean(without_paths(", ".join(about)))), numbers=numbers)


def _text(path: Path) -> str:
    with open_regular(path) as file:
        return file.read().decode("utf-8", "replace")
