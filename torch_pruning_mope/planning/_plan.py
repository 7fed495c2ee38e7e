"""A plan: which units go, what is left, and why."""

import copy
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .._io import write_whole
from ..encoder import DualEncoder, TowerName
from ..errors import PruningMismatchError, WrongModelError
from ..scoring import Unit, fingerprint
from ..surgery import reached_leaves
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

    def apply(self, encoder: DualEncoder) -> None:
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
            content = json.loads(Path(path).read_text(encoding="utf-8"))
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


def remove_units(encoder: DualEncoder, units: Sequence[Unit]) -> None:
    """Mutates the encoder's model: removes some units through Torch-Pruning's dependency graph; whole layers last.

    A sub-layer that loses all its units keeps layers of no width, which put out the bias of its last; what is left is what
    masks would leave.

    Args:
        encoder: The dual encoder.
        units: What goes, numbered as in the model before.

    Raises:
        ValueError: If the model has no such unit.
    """
    _cut(encoder, units)
    if any(not part.channels for layer in encoder.layers for part in layer.block.prunables):
        _freeze_unused(encoder)


def _cut(encoder: DualEncoder, units: Sequence[Unit], *, checked: bool = True) -> None:
    """Mutates the encoder's model as :func:`remove_units` does, but for gradients that are no longer needed."""
    layers = {(layer.tower, layer.index): layer.block for layer in encoder.layers}
    whole = {(unit.tower, unit.layer) for unit in units if unit.kind == "block"}
    gone: dict[tuple[TowerName, int, str], set[int]] = {}
    for unit in units:
        if unit.kind != "block" and (unit.tower, unit.layer) not in whole:
            gone.setdefault((unit.tower, unit.layer, unit.part), set()).update(unit.channels)
    graph: Any = encoder.dependency_graph(checked=checked) if gone else None
    flags = {name: parameter.requires_grad for name, parameter in encoder.model.named_parameters()}
    for (tower, layer, kind), channels in gone.items():
        block = layers.get((tower, layer))
        prunable = None if block is None else block.attention if kind == "head" else block.feed_forward
        if prunable is None or max(channels) >= prunable.channels:
            raise ValueError(
                f"units must be of the model as it is; found {kind} of {tower} layer {layer}, which it has not."
            )
        takes = graph.get_pruner_of_module(prunable.output).prune_in_channels
        graph.get_pruning_group(prunable.output, takes, sorted(channels)).prune()
    for name, parameter in encoder.model.named_parameters():
        parameter.requires_grad_(flags[name])  # Torch-Pruning's new parameters are all trainable
    for tower in dict.fromkeys(tower for tower, _ in whole):
        encoder.remove_blocks(tower, sorted(layer for own, layer in whole if own == tower))


def _freeze_unused(encoder: DualEncoder) -> None:
    """Mutates the model: what came before a sub-layer that is empty now gets no gradients, which trainers would miss."""
    inputs = encoder.example_inputs
    used = reached_leaves(
        encoder.model, lambda: [encoder.embed("image", inputs["images"]), encoder.embed("text", inputs["tokens"])]
    )
    for layer in encoder.layers:
        for units in layer.block.prunables:
            if not units.channels:
                for parameter in layer.block.module.parameters():
                    parameter.requires_grad_(parameter.requires_grad and parameter in used)


def outcome(
    encoder: DualEncoder, units: Sequence[Unit], *, checked: bool = True
) -> tuple[DualEncoder, dict[TowerName, Footprint]]:
    """A copy without some units, and its footprints.

    Args:
        encoder: The dual encoder; left as it is.
        units: What goes.
        checked: Whether to check that the dependency graph covers every parameter.

    Returns:
        Both. In the copy all parameters that the whole model trains ask for gradients, needed or not.
    """
    smaller = DualEncoder(copy.deepcopy(encoder.model))
    _cut(smaller, units, checked=checked)
    return smaller, footprints(smaller)


def weights_of(encoder: DualEncoder) -> str | None:
    """SHA-256 of a model's weights; None on the ``meta`` device."""
    meta = any(parameter.is_meta for parameter in encoder.model.parameters())
    return None if meta else fingerprint(encoder.model)
