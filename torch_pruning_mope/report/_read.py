"""Contents of a run folder."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from .._io import open_regular, read_json
from ..distillation import TrainingStep
from ..planning import LayerPlan, Plan
from ..runs import read_training
from ..scoring import ScoreTable
from ..towers import Unit
from ._changed import ChangedExamples
from ._text import clean, without_paths

T = TypeVar("T")
STAGES = ("dense", "pruned", "reconstructed", "distilled", "shipped")
SIZES = ("parameters", "multiply_adds", "latency_ms")
RECALLS = ("i2t_r1", "i2t_r5", "i2t_r10", "t2i_r1", "t2i_r5", "t2i_r10")
ACCURACIES = {"top1": "top-1", "top5": "top-5", "mean_per_class": "mean per class"}
_MOST_LAYERS, _MOST_UNITS = 1_000, 100_000
MAKERS = {
    "scores.json": "ScoreTable.save",
    "plan.json": "Plan.save",
    "evaluation.json": "save_evaluation",
    "training.jsonl": "TrainingLog",
    "examples.json": "changed_examples",
}
"""Files of a run, and what writes them."""
_OF_STAGES = {"scores.json": ("width.json", "depth.json"), "plan.json": ("width-plan.json", "depth-plan.json")}
"""The names of scores and plans in the paper's stages."""


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
    """One run; None or empty where the folder holds nothing.

    ``plans`` are in the order of their stages, each for the model that the ones before left; ``scores`` are the first stage's.
    """

    name: str
    config: str | None = None
    scores: ScoreTable | None = None
    plans: tuple[Plan, ...] = ()
    layers: tuple[LayerPlan, ...] = ()
    evaluation: list[Evaluation] = field(default_factory=list)
    training: list[TrainingStep] = field(default_factory=list)
    examples: ChangedExamples | None = None
    missing: tuple[str, ...] = ()


def read_run(folder: Path) -> Run:
    """Reads a run folder; raises FileNotFoundError if it holds nothing to report, ValueError if a file is damaged."""
    if not folder.is_dir():
        raise FileNotFoundError(f"run_folder must be a folder; found none at {folder}.")
    files = {name: _files(folder, name) for name in MAKERS}
    missing = tuple(name for name in MAKERS if not files[name])
    if len(missing) == len(MAKERS):
        raise FileNotFoundError(
            f"run_folder must hold one of {', '.join(MAKERS)} at least; found none of them in {folder}. Score a model first: "
            'mope.score(encoder, pairs).save("run/scores.json").'
        )

    def read(name: str, reader: Callable[[Path], T]) -> list[T]:
        found = []
        for file in files[name]:
            try:
                found.append(reader(file))
            except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
                raise ValueError(
                    f"{file} must be written by {MAKERS[name]}; found otherwise: {error}. Delete it, or write it again."
                ) from error
        return found

    files["scores.json"] = files["scores.json"][:1]
    config, plans = folder / "config.yaml", read("plan.json", _read_plan)
    return Run(
        name=folder.resolve().name,
        config=without_paths(_text(config)) if config.is_file() else None,
        scores=next(iter(read("scores.json", _read_scores)), None),
        plans=tuple(plans),
        layers=_layers(plans),
        evaluation=next(iter(read("evaluation.json", read_evaluation)), []),
        training=next(iter(read("training.jsonl", read_training)), []),
        examples=next(iter(read("examples.json", ChangedExamples.load)), None),
        missing=missing,
    )


def _files(folder: Path, name: str) -> list[Path]:
    """The run's own file of this name, else those of its stages in order."""
    stages = sorted(folder.glob("stage-*"), key=lambda path: (len(path.name), path.name)) if name in _OF_STAGES else ()
    places = [folder / name], [folder / own for own in _OF_STAGES.get(name, ())], [stage / name for stage in stages]
    there = ([place for place in own if place.is_file()] for own in places)
    return next(filter(None, there), [])


def _read_scores(path: Path) -> ScoreTable:
    table = ScoreTable.load(path)
    _check_units([score.unit for score in table.scores])
    return table


def _read_plan(path: Path) -> Plan:
    plan = Plan.load(path)
    _check_units(plan.units)
    if len(plan.layers) > _MOST_LAYERS:
        raise ValueError(f"at most {_MOST_LAYERS} layers can be shown; found {len(plan.layers)}")
    return plan


def _check_units(units: Sequence[Unit]) -> None:
    """Refuses units of no model: places are sizes of figures."""
    for unit in units:
        if not (0 <= unit.layer < _MOST_LAYERS and 0 <= unit.index < _MOST_UNITS):
            raise ValueError(f"units must be of a model; found {unit!r:.200}")


def _layers(plans: Sequence[Plan]) -> tuple[LayerPlan, ...]:
    """Layers of the dense model, and what all plans together leave of them."""
    rows = list(plans[0].layers) if plans else []
    for plan in plans[1:]:
        left = [place for place, row in enumerate(rows) if not row.removed]
        for place, row in zip(left, plan.layers, strict=False):
            rows[place] = replace(row, layer=rows[place].layer, heads=rows[place].heads, neurons=rows[place].neurons)
    return tuple(rows)


def read_evaluation(path: Path) -> list[Evaluation]:
    """Reads ``evaluation.json``: dense first, then stage by stage of each criterion, MoPE before the others."""
    rows = [_evaluation(row) for row in read_json(path)["rows"]]
    criteria = list(dict.fromkeys([own_criterion(rows), *(row.criterion for row in rows)]))

    def place(row: Evaluation) -> tuple[int, int]:
        stage = STAGES.index(row.stage) if row.stage in STAGES else len(STAGES)
        return (-1 if stage == 0 else criteria.index(row.criterion), stage)

    return sorted(rows, key=place)


def by_data(rows: Sequence[Evaluation]) -> dict[str, list[Evaluation]]:
    """Rows by the data that they were evaluated on."""
    found: dict[str, list[Evaluation]] = {}
    for row in rows:
        found.setdefault(row.about, []).append(row)
    return found


def models_of(rows: Sequence[Evaluation]) -> list[Evaluation]:
    """One row per model, one with a latency if there is any."""
    found: dict[tuple[str, str, str], Evaluation] = {}
    for row in sorted(rows, key=lambda row: row.get("latency_ms") is None):
        found.setdefault((row.model, row.criterion, row.stage), row)
    return sorted(found.values(), key=rows.index)


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
