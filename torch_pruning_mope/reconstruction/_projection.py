"""The joint projection: a linear map of the embeddings, folded into the last layer before them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..scoring import Ranks
from ..scoring._walk import Walk
from ._fit import LayerReport, Sums
from ._track import Tracks
from ._watch import watched

_LAST = 3
"""Number of the last linear layers that are tried."""


@dataclass(frozen=True)
class Fold:
    """A parameter, and its bias, into which a linear map of the embeddings can be folded."""

    weight: nn.Parameter
    bias: nn.Parameter | None
    rows: bool  # the embedding is the first dimension, as in ``nn.Linear``

    @torch.no_grad()
    def apply(self, map_: Float[Tensor, "V J"]) -> None:
        """Mutates the parameters: embeddings ``[N, J]`` become ``[E 1]`` times the map."""
        size = map_.shape[1]
        weight, matrix = self.weight.double(), map_[:size].to(self.weight.device)
        if self.bias is not None:
            self.bias.copy_(self.bias.double() @ matrix + (map_[size] if len(map_) > size else 0))
        self.weight.copy_(matrix.mT @ weight if self.rows else weight @ matrix)


def fit_projection(walk: Walk, tracks: Tracks, fold: Fold, ranks: Ranks, ridge: float | None) -> LayerReport:
    """Mutates the student: refits its joint projection onto the dense embeddings."""
    size = fold.weight.shape[0 if fold.rows else 1]
    sums = Sums(size, size, fold.weight.device)
    for track, _ in tracks:
        student, dense = track.embeddings()
        sums.add(student, dense, student, None, track.chunk)
    ranks.add_up(sums.tensors)
    sums.check(f"the {walk.tower} embeddings")
    change, ridge = sums.solve(ridge, bias=fold.bias is not None)
    where = {"tower": walk.tower, "layer": None, "part": "projection", "target": "embedding"}
    report = sums.decide(change, fold.weight.dtype, ridge=ridge, **where)
    if report.refitted:
        change[:size] += torch.eye(size, dtype=change.dtype, device=change.device)
        fold.apply(change)
    return report


def find_fold(walk: Walk, inputs: Tensor) -> Fold | None:
    """Finds the last parameter in which the embeddings are linear, by trying: the model is as it was afterwards."""
    linear = [module for module in walk.encoder.model.modules() if isinstance(module, nn.Linear)]
    with watched(linear) as seen:
        plain = walk.run(0, walk.stem(inputs)).double()
    size = plain.shape[1]
    ran = [m for m in seen.outputs if isinstance(m, nn.Linear) and m.out_features == size][-_LAST:]
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(size, size, generator=generator, dtype=torch.float64) / size**0.5
    map_ = (torch.eye(size, dtype=torch.float64) + noise).to(plain.device)
    parameter = next(walk.encoder.model.parameters())
    tolerance = 10 * torch.finfo(parameter.dtype).eps ** 0.5
    for fold in [*map(_of_linear, reversed(ran)), *_bare(walk, size)]:
        with _folded(fold, map_):
            moved = walk.run(0, walk.stem(inputs)).double()
        if (moved - plain @ map_).norm() <= tolerance * (plain @ map_ - plain).norm():
            return fold
    return None


def _of_linear(layer: Any) -> Fold:
    return Fold(layer.weight, layer.bias, True)


def _bare(walk: Walk, size: int) -> Iterator[Fold]:
    """Bare parameters that have the embedding for a dimension."""
    layers = {id(p) for module in walk.encoder.model.modules() if isinstance(module, nn.Linear | nn.LayerNorm)
              for p in module.parameters(recurse=False)}  # fmt: skip
    parameters: list[nn.Parameter] = list(walk.encoder.model.parameters())
    for parameter in parameters:
        if id(parameter) not in layers and parameter.ndim == 2:
            yield from (
                Fold(parameter, None, rows) for rows in (False, True) if parameter.shape[0 if rows else 1] == size
            )


@contextmanager
def _folded(fold: Fold, map_: Tensor) -> Iterator[None]:
    """The map folded in; the parameters to the bit as they were afterwards."""
    parameters = [parameter for parameter in (fold.weight, fold.bias) if parameter is not None]
    before = [parameter.detach().clone() for parameter in parameters]
    try:
        fold.apply(map_)
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, before, strict=True):
                parameter.copy_(value)
