"""The score table: all scores of one model on one calibration set (the paper's cost table)."""

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import WrongModelError
from ._units import Unit

_FORMAT = 1


@dataclass(frozen=True)
class Score:
    """MoPE of one unit.

    Attributes:
        unit: The unit.
        value: What the metric loses without it; for nested neuron groups its isotonic increment. May be negative.
        stderr: Standard error of ``value`` over calibration images; NaN for a metric without per-image shares.
        loss: What the metric loses without it, and, if nested, without the groups below it.
    """

    unit: Unit
    value: float
    stderr: float
    loss: float


@dataclass(frozen=True)
class ScoreTable:
    """Scores of all units, and what they were computed from.

    Attributes:
        scores: One per unit.
        dense: The metric of the unablated model.
        metric: Its name.
        weights: SHA-256 of the model's weights.
        pairs: SHA-256 of the calibration pairs.
        settings: What else the scores depend on: groups, interaction, rewiring.
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

    def save(self, path: str | Path) -> None:
        """Writes the table as JSON, whole or not at all.

        Args:
            path: The file.
        """
        rows = [
            {**asdict(score.unit), "value": score.value, "stderr": _jsonable(score.stderr), "loss": score.loss}
            for score in self.scores
        ]
        content = {"format": _FORMAT, **{k: v for k, v in self.__dict__.items() if k != "scores"}, "scores": rows}
        target = Path(path)
        partial = target.with_name(target.name + ".partial")
        partial.write_text(json.dumps(content, indent=1), encoding="utf-8")
        partial.replace(target)

    @classmethod
    def load(cls, path: str | Path) -> "ScoreTable":
        """Reads a table that :meth:`save` wrote.

        Args:
            path: The file.

        Returns:
            The table.

        Raises:
            ValueError: If the file is not such a table.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            if content.pop("format") != _FORMAT:
                raise ValueError(f"format must be {_FORMAT}")
            scores = tuple(
                Score(
                    unit=Unit(row["kind"], row["tower"], row["layer"], row["index"], tuple(row["channels"])),
                    value=float(row["value"]),
                    stderr=math.nan if row["stderr"] is None else float(row["stderr"]),
                    loss=float(row["loss"]),
                )
                for row in content.pop("scores")
            )
            return cls(scores=scores, **content)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"path must be a score table saved by this version; {path} is not: {error!r}.") from error

    def check_weights(self, model: nn.Module) -> None:
        """Raises unless the table is of these weights.

        Args:
            model: A wrapped model.

        Raises:
            WrongModelError: If it is not.
        """
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
            error = _mean(score.stderr for score in scores)
            lines.append(f"{tower:5} {kind:7} layer {layer:2}: {values}  (s.e. {100 * error:.2f})")
        return "\n".join(lines)


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers)


def _jsonable(value: float) -> float | None:
    return value if math.isfinite(value) else None


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of a model's state, the same on every device.

    Args:
        model: The model.

    Returns:
        The digest in hexadecimal.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype};".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return bytes(flat.view(torch.uint8).numpy().data)
