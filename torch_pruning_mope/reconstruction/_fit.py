"""Least squares of one group of layers, from sums over all tokens, checked on held-out ones."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from .._ridge import Gram, stacked, unstacked
from ..errors import NonFiniteError
from ..scoring import Ranks
from ._layers import Linear, Refit
from ._report import LayerReport
from ._site import Site
from ._track import Tracks

_NO_EFFECT = 1e-4
"""Channels whose layer scale is this much smaller than the largest are left as they are."""


class Sums:
    """Sums of one layer: of the tokens that are fitted, of those held out, and the size of the held-out target.

    Args:
        width: Number of inputs of the layer, biases not counted.
        outputs: Number of its outputs.
        device: Where they are.
        scale: By what the outputs are multiplied before they join the stream.
    """

    def __init__(self, width: int, outputs: int, device: torch.device, scale: Tensor | None = None) -> None:
        self.fitted, self.held_out = Gram(width, outputs, device), Gram(width, outputs, device)
        self.energy = torch.zeros((), dtype=torch.float64, device=self.fitted.inner.device)
        self._scale = None if scale is None else scale.to(self.energy)

    def add(self, hidden: Tensor, target: Tensor, found: Tensor, mask: Tensor | None, *, held_out: bool) -> None:
        """Adds tokens: the layer's input, the target, and what stands against it."""
        if mask is not None and len(mask) == len(hidden):
            hidden, target, found = hidden[mask], target[mask], found[mask]
        residual = target.double() - found.double() if target.device.type == "cpu" else (target - found).float()
        if held_out:
            self.energy += target.double().square().sum().to(self.energy.device)
        if self._scale is not None:
            scale = self._scale.to(residual)
            works = scale.abs() > _NO_EFFECT * scale.abs().max()
            residual = residual * torch.where(works, scale, torch.inf).reciprocal()
        (self.held_out if held_out else self.fitted).add(hidden.detach(), residual)

    @property
    def tensors(self) -> list[Tensor]:
        """All sums, to be added up over processes."""
        return [*self.fitted.tensors, *self.held_out.tensors, self.energy]

    def error(self, change: Float[Tensor, "V D"] | None = None) -> float:
        """Squared error of the stream on held-out tokens after a change of the weights."""
        errors = self.held_out.errors(change)
        return float((errors if self._scale is None else errors * self._scale.square()).sum())

    def relative(self, error: float) -> float:
        """The error relative to the target."""
        return float((error / self.energy).sqrt()) if self.energy > 0 else 0.0

    def check(self, name: str) -> None:
        """Raises where something is NaN or infinite."""
        if not all(torch.isfinite(tensor).all() for tensor in self.tensors):
            raise NonFiniteError(
                f"pairs must have finite hidden states in both models; found NaN or infinity at {name}. Check the images, and "
                "run half-precision models in float32."
            )


def fit_group(group: Sequence[Refit], tracks: Tracks, ranks: Ranks, ridge: float) -> list[LayerReport]:
    """Mutates the student: refits the layers of a group."""
    sums = {refit: Sums(_width(refit.layer), refit.layer.weight.shape[0], refit.layer.weight.device, _scale(refit))
            for refit in group}  # fmt: skip
    for track, reach in tracks:
        for refit, hidden, found in track.student(group):
            target = track.target(refit, len(found))
            sums[refit].add(hidden, target, found, reach[refit], held_out=track.held_out)
    ranks.add_up([tensor for own in sums.values() for tensor in own.tensors])
    return [_decide(refit, sums[refit], ridge) for refit in group]


def _decide(refit: Refit, sums: Sums, ridge: float) -> LayerReport:
    """Mutates the layer if that makes the held-out error smaller."""
    sums.check(refit.name)
    layer, before = refit.layer, sums.error()
    weights = stacked(layer)
    refitted = weights + sums.fitted.solve(ridge, bias=layer.bias is not None).to(weights.device)
    refitted = refitted.to(layer.weight.dtype).double()  # as it is stored
    after = sums.error((refitted - weights).to(sums.energy.device))
    noise = 100 * torch.finfo(layer.weight.dtype).eps ** 2 * float(sums.energy)
    better = after < before and before > noise
    if better:
        unstack(layer, refitted)
    return LayerReport(
        tower=refit.tower, layer=refit.block, part=refit.part,
        target="own output" if refit.site is None else "stream",
        before=sums.relative(before), after=sums.relative(after if better else before), refitted=better,
    )  # fmt: skip


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
