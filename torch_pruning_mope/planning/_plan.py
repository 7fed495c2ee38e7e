"""A plan: the units that go, what they leave, and why."""

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .._fingerprint import fingerprint
from .._io import read_json, typed, write_whole
from ..cost import Footprint, footprints
from ..encoder import EncoderCore, TowerName
from ..errors import PruningMismatchError, WrongModelError
from ..pruning import remove_units
from ..scoring import Score
from ..towers import Unit
from ._layers import LayerPlan

_FORMAT = 3


@dataclass(frozen=True)
class Plan:
    """Units to remove from a model, and what that leaves.

    Attributes:
        scores: Scores of the units that go, in the order in which they go. Channels are as in the model that the plan is for.
        before: Footprint of each tower before.
        after: Footprint of each tower after; counted on a model from which the units were removed.
        weights: SHA-256 of the weights of the model that the plan is for; None on the ``meta`` device.
        settings: Budgets and rules asked for, and measurements: ``unused`` is how much less is left than budgets allow.
        layers: Each layer before and after.
    """

    scores: tuple[Score, ...]
    before: Mapping[TowerName, Footprint]
    after: Mapping[TowerName, Footprint]
    weights: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    layers: tuple[LayerPlan, ...] = ()

    @property
    def units(self) -> tuple[Unit, ...]:
        """The units that go."""
        return tuple(score.unit for score in self.scores)

    @property
    def loss(self) -> float:
        """Sum of the scores of what goes."""
        return math.fsum(score.value for score in self.scores)

    def apply(self, encoder: EncoderCore) -> None:
        """Mutates the encoder's model: removes exactly these units, whole layers last.

        Args:
            encoder: A dual encoder of the model that the plan is for.

        Raises:
            WrongModelError: If its weights are others. Nothing is removed.
            PruningMismatchError: If what is left is not what was planned.
        """
        if self.weights is not None and weights_of(encoder) != self.weights:
            raise WrongModelError(
                "encoder must hold the model that the plan was made for; found other weights. Plan again for this model."
            )
        remove_units(encoder, self.units)
        left = footprints(encoder)
        if left != dict(self.after):
            raise PruningMismatchError(f"what is left must be {dict(self.after)}; found {left}.")

    def save(self, path: str | Path) -> None:
        """Writes the plan as JSON, whole or not at all."""
        write_whole(Path(path), self.to_json())

    def to_json(self) -> str:
        """The plan as :meth:`save` writes it."""
        content = asdict(self)
        for score in content["scores"]:
            score["stderr"] = score["stderr"] if math.isfinite(score["stderr"]) else None
        return json.dumps({"format": _FORMAT, **content}, indent=1) + "\n"

    @classmethod
    def load(cls, path: str | Path) -> "Plan":
        """Reads a plan; raises ValueError if the file holds none, or one of another format."""
        try:
            content = read_json(Path(path))
            if content.pop("format") != _FORMAT:
                raise ValueError("of another format")
            for entry in content["scores"]:
                entry["stderr"] = math.nan if entry["stderr"] is None else entry["stderr"]
            plan: Plan = typed(cls, content)
            if plan.before.keys() != plan.after.keys() or not all(
                of.parameters and of.multiply_adds for of in plan.before.values()
            ):
                raise ValueError("before and after must be of the same towers, none of them empty")
            return plan
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"path must be of a plan written by Plan.save; {path} is not: {error!r}.") from error

    def __str__(self) -> str:
        kinds = Counter(unit.kind for unit in self.units)
        neurons = sum(len(unit.channels) for unit in self.units if unit.kind == "neurons")
        gone = ", ".join(f"{count} {kind}{'s' * (count > 1)}" for kind, count in kinds.items() if kind != "neurons")
        lines = [f"remove {gone}{', ' if gone and neurons else ''}{f'{neurons} neurons' if neurons else ''}"]
        for tower, before in self.before.items():
            after = self.after[tower]
            lines.append(
                f"{tower}: {after.parameters / 1e6:.2f} of {before.parameters / 1e6:.2f} M parameters "
                f"({after.parameters / before.parameters:.0%}), {after.multiply_adds / 1e9:.3f} of "
                f"{before.multiply_adds / 1e9:.3f} G multiply-adds ({after.multiply_adds / before.multiply_adds:.0%})"
            )
        lines.append(f"sum of the losses: {self.loss:.4g}")
        return "\n".join(lines)

    def why(self) -> str:
        """A line per unit, in the order in which they go: its place, its score, what it frees."""
        lines = []
        for place, score in enumerate(self.scores, 1):
            error = f" ± {score.stderr:.2g}" if math.isfinite(score.stderr) else ""
            lines.append(
                f"{place}. {score.unit}: loses {score.value:.3g}{error}, frees {score.parameters or 0:,} parameters"
            )
        return "\n".join(lines)


def weights_of(encoder: EncoderCore) -> str | None:
    """SHA-256 of a model's weights; None on the ``meta`` device."""
    meta = any(parameter.is_meta for parameter in encoder.model.parameters())
    return None if meta else fingerprint(encoder.model)
