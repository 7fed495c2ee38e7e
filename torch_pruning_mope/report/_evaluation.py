"""The rows of evaluation.json: what each model is and how well it retrieves."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ._json import read_json
from ._text import clean

RECALLS = ("i2t_r1", "i2t_r5", "i2t_r10", "t2i_r1", "t2i_r5", "t2i_r10")
ACCURACIES = {"top1": "top-1", "top5": "top-5", "mean_per_class": "mean per class"}
"""Of zero-shot classification, and what they are called."""
_STAGES = ("dense", "pruned", "distilled")
_LONGEST = 60


@dataclass(frozen=True)
class Evaluation:
    """One model, evaluated.

    Attributes:
        model: Its label.
        criterion: What chose the units to remove; empty if it does not say.
        stage: ``dense``, ``pruned`` or ``distilled``; or another word.
        parameters: All parameters.
        multiply_adds: Of an image and a caption.
        latency_ms: Milliseconds, if measured.
        recalls: Percent by name (``i2t_r1`` …), those that were measured.
        pairs: Test images, if it says.
        accuracies: Percent by name (``top1`` …), of zero-shot classification.
        about: What it was evaluated on, in words; empty if it does not say.
    """

    model: str
    criterion: str
    stage: str
    parameters: int | None
    multiply_adds: int | None
    latency_ms: float | None
    recalls: Mapping[str, float]
    pairs: int | None
    accuracies: Mapping[str, float]
    about: str

    @property
    def label(self) -> str:
        """Its name in figures, short of the model's own."""
        return "dense" if self.stage == "dense" else ", ".join(filter(None, [self.criterion, self.stage]))

    @property
    def r1(self) -> float | None:
        """Mean R@1 of both directions, in percent."""
        both = [self.recalls[name] for name in ("i2t_r1", "t2i_r1") if name in self.recalls]
        return sum(both) / 2 if len(both) == 2 else None


def read_evaluation(path: Path) -> list[Evaluation]:
    """Reads evaluation.json.

    Args:
        path: The file.

    Returns:
        Its rows, in the order dense, pruned, distilled of each criterion as it first comes up.

    Raises:
        ValueError: If the file is damaged, or a row is not as it must be.
    """
    content = read_json(path)
    rows = content.get("rows") if isinstance(content, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f'{path} must hold {{"rows": [{{...}}, ...]}}; found no such list. Evaluate again.')
    return _ordered([_row(path, number, row) for number, row in enumerate(rows, start=1)])


def by_data(rows: Sequence[Evaluation]) -> dict[str, list[Evaluation]]:
    """The rows by what they were evaluated on, in order."""
    found: dict[str, list[Evaluation]] = {}
    for row in rows:
        found.setdefault(row.about, []).append(row)
    return found


def models_of(rows: Sequence[Evaluation]) -> list[Evaluation]:
    """One row per model, evaluated on several data or not; the first that has a latency, if any has."""
    found: dict[tuple[str, str, str], Evaluation] = {}
    for row in rows:
        key = (row.model, row.criterion, row.stage)
        if key not in found or (found[key].latency_ms is None and row.latency_ms is not None):
            found[key] = row
    return list(found.values())


def labels(rows: Sequence[Evaluation]) -> list[str]:
    """A name for each row: its criterion and stage, and the model's own where that is not enough.

    Args:
        rows: The rows.

    Returns:
        As many names.
    """
    short = [row.label for row in rows]
    return [name if short.count(name) == 1 else f"{row.model}: {name}" for name, row in zip(short, rows, strict=True)]


def own_criterion(rows: Sequence[Evaluation]) -> str | None:
    """The criterion that the report is about: MoPE, else the first of a pruned model."""
    found = [row.criterion for row in rows if row.stage != "dense"]
    return next((name for name in found if name.lower().startswith("mope")), found[0] if found else None)


def _ordered(rows: Sequence[Evaluation]) -> list[Evaluation]:
    own = own_criterion(rows)
    criteria = list(dict.fromkeys([*([own] if own else []), *(row.criterion for row in rows)]))

    def place(row: Evaluation) -> tuple[int, int]:
        stage = _STAGES.index(row.stage) if row.stage in _STAGES else len(_STAGES)
        return (-1 if stage == 0 else criteria.index(row.criterion), stage)

    return sorted(rows, key=place)


def _row(path: Path, number: int, row: Mapping[str, Any]) -> Evaluation:
    def word(name: str, *, needed: bool = True) -> str:
        value = row.get(name)
        if not needed and (value is None or value == ""):
            return ""
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"{path}, row {number}: {name} must be a word; found {value!r}. Evaluate again.")
        return clean(value.strip(), _LONGEST)

    def amount(name: str, most: float = math.inf) -> float | None:
        value = row.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most or value == math.inf:
            limit = "of at least 0" if most == math.inf else f"from 0 to {most:g}"
            raise ValueError(f"{path}, row {number}: {name} must be a number {limit}; found {value!r}. Evaluate again.")
        return float(value)

    def count(name: str) -> int | None:
        value = amount(name)
        return None if value is None else int(value)

    shares = {name: amount(name, 100.0) for name in (*RECALLS, *ACCURACIES)}
    measured = {name: value for name, value in shares.items() if value is not None}
    return Evaluation(
        word("model"),
        word("criterion", needed=False),
        word("stage"),
        count("parameters"),
        count("multiply_adds"),
        amount("latency_ms"),
        {name: value for name, value in measured.items() if name in RECALLS},
        count("pairs"),
        {name: value for name, value in measured.items() if name in ACCURACIES},
        ", ".join(filter(None, (word(name, needed=False) for name in ("task", "data", "part")))),
    )
