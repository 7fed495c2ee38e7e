"""Least squares of one group of layers, from sums over all tokens, checked on held-out ones; and its report."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .._ridge import Gram, best_ridge, stacked, unstacked
from ..errors import NonFiniteError
from ..scoring import Ranks
from ._layers import Linear, Refit
from ._source import Chunk
from ._track import Tracks
from ._watch import Site


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
        refitted: True if the weights were changed; they stay where that would make the error larger.
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


_NO_EFFECT = 1e-4
"""Channels whose layer scale is this much smaller than the largest are left as they are."""


class Sums:
    """Sums of one layer: of the tokens that are fitted, in halves, of those held out, and the size of the held-out target."""

    def __init__(self, width: int, outputs: int, device: torch.device, scale: Tensor | None = None) -> None:
        self.halves, self.held_out = (
            (Gram(width, outputs, device), Gram(width, outputs, device)),
            Gram(width, outputs, device),
        )
        self.energy = torch.zeros((), dtype=torch.float64, device=self.held_out.inner.device)
        self._scale = None if scale is None else scale.to(self.energy)

    def add(self, hidden: Tensor, target: Tensor, found: Tensor, mask: Tensor | None, chunk: Chunk) -> None:
        """Adds tokens of a chunk: the layer's input, the target, and what stands against it."""
        if mask is not None and len(mask) == len(hidden):
            hidden, target, found = hidden[mask], target[mask], found[mask]
        residual = target.double() - found.double() if target.device.type == "cpu" else (target - found).float()
        if chunk.held_out:
            self.energy += target.double().square().sum().to(self.energy.device)
        if self._scale is not None:
            scale = self._scale.to(residual)
            works = scale.abs() > _NO_EFFECT * scale.abs().max()
            residual = residual * torch.where(works, scale, torch.inf).reciprocal()
        (self.held_out if chunk.held_out else self.halves[chunk.number % 2]).add(hidden, residual)

    @property
    def tensors(self) -> list[Tensor]:
        """All sums, to be added up over processes."""
        return [*self.halves[0].tensors, *self.halves[1].tensors, *self.held_out.tensors, self.energy]

    def solve(self, ridge: float | None, *, bias: bool) -> tuple[Float[Tensor, "V D"], float]:
        """The change of the weights, and the ridge, which is found by cross-validation where it is None."""
        weights = 1.0 if self._scale is None else self._scale.square()
        ridge = best_ridge(self.halves, weights, bias=bias) if ridge is None else ridge
        return (self.halves[0] + self.halves[1]).solve(ridge, bias=bias), ridge

    def error(self, change: Float[Tensor, "V D"] | None = None) -> float:
        """Squared error of the stream on held-out tokens after a change of the weights."""
        errors = self.held_out.errors(change)
        return float((errors if self._scale is None else errors * self._scale.square()).sum())

    def _relative(self, error: float) -> float:
        """The error relative to the target."""
        return float((error / self.energy).sqrt()) if self.energy > 0 else 0.0

    def decide(self, change: Float[Tensor, "V D"], dtype: torch.dtype, **where: Any) -> LayerReport:
        """The report of a change of the weights, which is made if the held-out error becomes smaller."""
        before, after = self.error(), self.error(change)
        noise = 100 * torch.finfo(dtype).eps ** 2 * float(self.energy)
        better = after < before and before > noise
        after = after if better else before
        return LayerReport(before=self._relative(before), after=self._relative(after), refitted=better, **where)

    def check(self, name: str) -> None:
        """Raises where something is NaN or infinite."""
        if not all(torch.isfinite(tensor).all() for tensor in self.tensors):
            raise NonFiniteError(
                f"pairs must have finite hidden states in both models; found NaN or infinity at {name}. Check the images, and "
                "run half-precision models in float32."
            )


def fit_group(group: Sequence[Refit], tracks: Tracks, ranks: Ranks, ridge: float | None) -> list[LayerReport]:
    """Mutates the student: refits the layers of a group."""
    sums = {refit: Sums(_width(refit.layer), refit.layer.weight.shape[0], refit.layer.weight.device, _scale(refit))
            for refit in group}  # fmt: skip
    for track, reach in tracks:
        for refit, hidden, found in track.student(group):
            target = track.target(refit, len(found))
            sums[refit].add(hidden, target, found, reach[refit], track.chunk)
    ranks.add_up([tensor for own in sums.values() for tensor in own.tensors])
    return [_decide(refit, sums[refit], ridge) for refit in group]


def _decide(refit: Refit, sums: Sums, ridge: float | None) -> LayerReport:
    """Mutates the layer if that makes the held-out error smaller."""
    sums.check(refit.name)
    layer = refit.layer
    weights = stacked(layer)
    change, ridge = sums.solve(ridge, bias=layer.bias is not None)
    refitted = (weights + change.to(weights.device)).to(layer.weight.dtype).double()  # as it is stored
    report = sums.decide(
        (refitted - weights).to(sums.energy.device), layer.weight.dtype, tower=refit.tower, layer=refit.block,
        part=refit.part, target="own output" if refit.site is None else "stream", ridge=ridge,
    )  # fmt: skip
    if report.refitted:
        unstack(layer, refitted)
    return report


def _scale(refit: Refit) -> Tensor | None:
    site: Site | None = refit.site
    if site is None:
        return None
    return site.scale if refit.channels is None else site.scale[refit.channels.to(site.scale.device)]


def _width(layer: Linear) -> int:
    return layer.weight[:1].numel()


@torch.no_grad()
def unstack(layer: Linear, weights: Float[Tensor, "V D"]) -> None:
    """Mutates a layer: gives it weights as :func:`stacked` returns them."""
    weight, bias = unstacked(layer, weights)
    layer.weight.copy_(weight)
    if layer.bias is not None and bias is not None:
        layer.bias.copy_(bias)
