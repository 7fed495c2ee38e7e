"""A plan: which units go, what is left, and why."""

import copy
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .._fingerprint import fingerprint
from .._io import read_json, write_whole
from ..encoder import EncoderCore, TowerName
from ..errors import PruningMismatchError, WrongModelError
from ..pruning import cut, remove_units
from ..scoring import Unit
from ._footprint import Footprint, footprints
from ._layers import LayerPlan, Reason, layers_table

_FORMAT = 2


@dataclass(frozen=True)
class Plan:
    """Units to remove from a model, and what comes of it.

    Attributes:
        units: What goes. Channels are as in the model that the plan is for.
        before: Footprint of each tower before.
        after: Footprint of each tower after; counted on a model from which the units were removed.
        loss: What the metric should lose, if losses added up.
        weights: SHA-256 of the weights of the model that the plan is for; None on the ``meta`` device.
        settings: What was asked for, and what was measured: ``unused`` is how much less is left than budgets allow, ``cost``
            what units were weighed by.
        reasons: Why each unit goes, in the order of the units.
        layers: What becomes of each layer.
    """

    units: tuple[Unit, ...]
    before: Mapping[TowerName, Footprint]
    after: Mapping[TowerName, Footprint]
    loss: float
    weights: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    reasons: tuple[Reason, ...] = ()
    layers: tuple[LayerPlan, ...] = ()

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
        """Writes the plan as JSON, whole or not at all.

        Args:
            path: The file.
        """
        write_whole(Path(path), self.to_json())

    def to_json(self) -> str:
        """The plan as :meth:`save` writes it."""
        return json.dumps({"format": _FORMAT, **asdict(self)}, indent=1) + "\n"

    @classmethod
    def load(cls, path: str | Path) -> "Plan":
        """Reads a plan.

        Args:
            path: The file.

        Returns:
            The plan.

        Raises:
            ValueError: If the file holds none, or one of another format.
        """
        try:
            content = read_json(Path(path))
            if content.pop("format") != _FORMAT:
                raise ValueError("of another format")
            units = tuple(Unit(**{**unit, "channels": tuple(unit["channels"])}) for unit in content.pop("units"))
            before, after = ({t: Footprint(**f) for t, f in content.pop(side).items()} for side in ("before", "after"))
            reasons = tuple(Reason(**reason) for reason in content.pop("reasons"))
            layers = tuple(LayerPlan(**layer) for layer in content.pop("layers"))
            return cls(units=units, before=before, after=after, reasons=reasons, layers=layers, **content)
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

    def table(self) -> str:
        """A line per layer: heads and neurons kept, what goes, and what that should lose."""
        return layers_table(self.layers)

    def why(self) -> str:
        """A line per unit, in the order in which they go: its loss, what it frees, its place."""
        return "\n".join(f"{unit}: {reason}" for unit, reason in zip(self.units, self.reasons, strict=True))


def outcome(
    encoder: EncoderCore, units: Sequence[Unit], *, checked: bool = True
) -> tuple[EncoderCore, dict[TowerName, Footprint]]:
    """A copy without some units, and its footprints.

    Args:
        encoder: The dual encoder; left as it is.
        units: What goes.
        checked: Whether to check that the dependency graph covers every parameter.

    Returns:
        Both. In the copy all parameters that the whole model trains ask for gradients, needed or not.
    """
    smaller = EncoderCore(copy.deepcopy(encoder.model))
    cut(smaller, units, checked=checked)
    return smaller, footprints(smaller)


def weights_of(encoder: EncoderCore) -> str | None:
    """SHA-256 of a model's weights; None on the ``meta`` device."""
    meta = any(parameter.is_meta for parameter in encoder.model.parameters())
    return None if meta else fingerprint(encoder.model)
