"""The score table: all scores of one model on one calibration set (the paper's cost table)."""

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from torch import nn

from .._fingerprint import fingerprint
from .._io import read_json, typed, write_whole
from ..errors import WrongModelError
from ..towers import Unit

_FORMAT = 3
_COLUMNS = (
    ("kind", "string"),
    ("tower", "string"),
    ("layer", "integer"),
    ("index", "integer"),
    ("channels", "any"),
    ("value", "number"),
    ("stderr", "number"),
    ("loss", "number"),
    ("parameters", "any"),
    ("images", "any"),
)
_FORMULA = {"=", "+", "-", "@", "\t", "\r"}


@dataclass(frozen=True)
class Score:
    """MoPE of one unit.

    Attributes:
        unit: The unit.
        value: Drop of the metric without it; on a path its isotonic increment. May be negative.
        stderr: Standard error of ``value`` over calibration images; NaN for a metric without per-image shares.
        loss: Drop of the metric without it, and, on a path, without the units that go before it.
        parameters: Number of parameters that it frees when it is cut out of the whole model.
        images: Number of calibration images.
    """

    unit: Unit
    value: float
    stderr: float
    loss: float
    parameters: int | None = None
    images: int | None = None


@dataclass(frozen=True)
class ScoreTable:
    """Scores of all units, and what they were computed from.

    Attributes:
        scores: One per unit.
        dense: The metric of the unablated model.
        metric: Name of the metric.
        weights: SHA-256 of the model's weights.
        pairs: SHA-256 of the calibration pairs.
        settings: Everything else that the scores depend on.
    """

    scores: tuple[Score, ...]
    dense: float
    metric: str
    weights: str
    pairs: str
    settings: dict[str, Any] = field(default_factory=dict)

    def of(self, kind: str, tower: str | None = None, layer: int | None = None) -> list[Score]:
        """The scores of one kind of unit, optionally of one tower and layer, in the table's order."""
        return [
            score
            for score in self.scores
            if score.unit.kind == kind and tower in {None, score.unit.tower} and layer in {None, score.unit.layer}
        ]

    def first(self, parameters: float | int) -> list[Score]:
        """Returns the beginning of a joint path that frees a number of parameters, or, below 1, a share of all.

        Returns:
            As few scores as suffice. Units of a block that is removed before them count nothing.

        Raises:
            ValueError: If the table holds no joint path, or not as much can be freed.
        """
        if self.settings.get("interaction") != "joint":
            raise ValueError(
                f"table must hold a joint path; found interaction={self.settings.get('interaction')!r}. "
                "Score with interaction='joint'."
            )
        gone: set[tuple[str, int]] = set()
        freed: dict[tuple[str, int], int] = {}
        running = []
        for score in self.scores:
            layer = (score.unit.tower, score.unit.layer)
            if layer not in gone:
                whole = score.unit.kind == "block"
                freed[layer] = (score.parameters or 0) + (0 if whole else freed.get(layer, 0))
                gone |= {layer} if whole else set()
            running.append(sum(freed.values()))
        wanted = parameters * running[-1] if parameters < 1 else parameters
        if not 0 < wanted <= running[-1]:
            raise ValueError(
                f"parameters must be more than 0 and at most {running[-1]}, all there is; found {parameters}."
            )
        return list(self.scores[: next(i for i, total in enumerate(running) if total >= wanted) + 1])

    @classmethod
    def merge(cls, *tables: "ScoreTable") -> "ScoreTable":
        """Joins tables made in separate runs on the same weights, pairs and metric.

        Returns:
            Their scores one after another.

        Raises:
            ValueError: If there are none, they differ in these, a unit is in two of them, or one is a joint path.
        """
        if not tables:
            raise ValueError("tables must be one table at least; found none.")
        for name in ("weights", "pairs", "metric"):
            found = sorted({getattr(table, name)[:16] for table in tables})
            if len(found) > 1:
                raise ValueError(f"tables must be of the same {name}; found {found}.")
        if len(tables) > 1 and any(table.settings.get("interaction") == "joint" for table in tables):
            raise ValueError("tables must hold no joint path; found one, which is of all its units together.")
        scores = [score for table in tables for score in table.scores]
        owned = Counter((score.unit.kind, score.unit.tower, score.unit.layer, score.unit.index) for score in scores)
        repeated = [key for key, count in owned.items() if count > 1]
        if repeated:
            raise ValueError(
                f"tables must hold each unit once; found {len(repeated)} units twice, such as {repeated[0]}."
            )
        return cls(
            tuple(scores), tables[0].dense, tables[0].metric, tables[0].weights, tables[0].pairs, _common(tables)
        )

    def save(self, path: str | Path) -> None:
        """Writes the table, whole or not at all.

        JSON, which :meth:`load` reads, and ``pandas.read_json(path, orient="table")`` too; or, if the name ends in ``.csv``,
        the scores alone as CSV for other programs.
        """
        target = Path(path)
        write_whole(target, self._csv() if target.suffix.lower() == ".csv" else self._json())

    def _csv(self) -> str:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, [name for name, _ in _COLUMNS])
        writer.writeheader()
        for row in self._rows():
            cells = row | {"channels": " ".join(map(str, row["channels"]))}
            # Spreadsheets run what begins so; a table read from elsewhere may hold any text.
            writer.writerow({k: f"'{v}" if isinstance(v, str) and v[:1] in _FORMULA else v for k, v in cells.items()})
        return text.getvalue()

    def _json(self) -> str:
        fields = [{"name": name, "type": kind} for name, kind in _COLUMNS]
        content = {
            "format": _FORMAT,
            **{name: value for name, value in self.__dict__.items() if name != "scores"},
            "schema": {"fields": fields, "pandas_version": "1.4.0"},
            "data": self._rows(),
        }
        return json.dumps(content, indent=1)

    def _rows(self) -> list[dict[str, Any]]:
        return [
            {**asdict(score.unit), **{k: _jsonable(v) for k, v in score.__dict__.items() if k != "unit"}}
            for score in self.scores
        ]

    @classmethod
    def load(cls, path: str | Path) -> "ScoreTable":
        """Reads a table that :meth:`save` wrote as JSON; raises ValueError if the file is none."""
        try:
            content = read_json(Path(path))
            if content.pop("format") != _FORMAT:
                raise ValueError(f"format must be {_FORMAT}")
            del content["schema"]
            content["scores"] = content.pop("data")
            for row in content["scores"]:
                row["unit"] = {field.name: row.pop(field.name) for field in fields(Unit)}
                row["stderr"] = math.nan if row["stderr"] is None else row["stderr"]
            table: ScoreTable = typed(cls, content)
            return table
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"path must be a score table saved by this version; {path} is not: {error!r}.") from error

    def check_weights(self, model: nn.Module) -> None:
        """Raises WrongModelError unless the table is of a model's own weights."""
        found = fingerprint(model)
        if found != self.weights:
            raise WrongModelError(
                f"table must be of the model's own weights (SHA-256 {found[:12]}…); found one of {self.weights[:12]}…. "
                "Score this model: mope.score(encoder, pairs)."
            )

    def __str__(self) -> str:
        """A line per layer and kind: the scores in points of the metric, lowest to highest."""
        lines = [f"{self.metric} = {self.dense:.4f} unpruned; {len(self.scores)} units; scores x 100"]
        groups: dict[tuple[str, str, int], list[Score]] = {}
        for score in self.scores:
            groups.setdefault((score.unit.tower, score.unit.kind, score.unit.layer), []).append(score)
        for (tower, kind, layer), scores in groups.items():
            values = " ".join(f"{100 * score.value:7.2f}" for score in scores)
            error = 100 * sum(score.stderr for score in scores) / len(scores)
            lines.append(f"{tower:5} {kind:7} layer {layer:2}: {values}  (s.e. {error:.2f})")
        return "\n".join(lines)


def _jsonable(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _common(tables: Sequence[ScoreTable]) -> dict[str, Any]:
    """Settings that all tables share; lists joined, counts of evaluations added."""
    common: dict[str, Any] = {}
    for name in tables[0].settings:
        values = [table.settings.get(name) for table in tables]
        if name == "evaluations":
            common[name] = sum(value or 0 for value in values)
        elif all(isinstance(value, list) for value in values):
            common[name] = sorted({entry for value in values for entry in value or ()})
        elif all(value == values[0] for value in values):
            common[name] = values[0]
    return common
