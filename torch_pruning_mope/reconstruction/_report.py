"""The report of a reconstruction."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True)
class LayerReport:
    """One refitted layer.

    Attributes:
        tower: ``image`` or ``text``.
        layer: Position of its block in the student; None for the joint projection.
        part: ``attention`` or ``mlp``, with the name of an input projection after a dot; or ``projection``.
        target: ``stream``: the dense residual stream after it; ``own output``: what the dense layer puts out, where the layer's
            output joins no stream that can be seen; ``embedding``.
        before: Relative error on held-out tokens, ``‖dense − student‖ / ‖dense‖``, with the weights as they were.
        after: The same with the weights as they are now.
        refitted: Whether the weights were changed; they stay where that would make the error larger.
        ridge: Weight of the penalty.
    """

    tower: str
    layer: int | None
    part: str
    target: str
    before: float
    after: float
    refitted: bool
    ridge: float

    def __str__(self) -> str:
        place = self.tower if self.layer is None else f"{self.tower} layer {self.layer}"
        kept = "" if self.refitted else ", left as it was"
        return f"{place} {self.part}: {self.before:.4f} -> {self.after:.4f} ({self.target}{kept})"


@dataclass(frozen=True)
class ReconstructionReport:
    """Result of a reconstruction.

    Attributes:
        layers: The layers in the order in which they were refitted.
        left_alone: Layers that were not refitted, and why.
        inputs: Number of images and captions, held-out ones among them.
        settings: Arguments of the call.
        seconds: Duration.
    """

    layers: tuple[LayerReport, ...]
    left_alone: Mapping[str, str] = field(default_factory=dict)
    inputs: Mapping[str, int] = field(default_factory=dict)
    settings: Mapping[str, object] = field(default_factory=dict)
    seconds: float = 0.0

    def __str__(self) -> str:
        lines = ["relative error on held-out tokens, before -> after:", *map(str, self.layers)]
        return "\n".join([*lines, *(f"{name}: left alone, {why}" for name, why in self.left_alone.items())])

    def to_json(self) -> str:
        """The report as JSON."""
        return json.dumps(asdict(self), indent=1) + "\n"
