"""Ridge regression of a linear layer from sums over tokens: pure tensor functions.

Axes: ``R`` rows (tokens), ``U`` input channels, ``D`` output channels, ``V`` rows of the weights: ``U + 1`` with the bias in
the last row, ``U`` without a bias. The refit solves, for the change ``C`` of the weights and the residual ``e`` that
they leave,

    minimise ‖[h 1]·C − e‖² + λ·‖C‖²,   λ = ridge · mean diag(hᵀh)

which is the refit onto a target with the weights as they are for a prior. Removing input channels ``P`` from layers that are at
the minimum is the update of Optimal Brain Surgeon (Hassibi and Stork, 1993), ``W' = W − A⁻¹[:, P]·(A⁻¹[P, P])⁻¹·W[P]``.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class Gram:
    """Sums of ``[h 1]ᵀ[h 1]``, ``[h 1]ᵀe`` and, by channel, ``e²`` over rows that come in parts; float64.

    Products of a part are float64 on a CPU, and float32 on an accelerator, where float64 is slow.
    """

    def __init__(self, inputs: int, outputs: int, device: torch.device | str = "cpu") -> None:
        place = torch.device("cpu") if torch.device(device).type == "mps" else torch.device(device)
        self.inner = torch.zeros(inputs + 1, inputs + 1, dtype=torch.float64, device=place)
        self.cross = torch.zeros(inputs + 1, outputs, dtype=torch.float64, device=place)
        self.square = torch.zeros(outputs, dtype=torch.float64, device=place)

    def add(self, hidden: Float[Tensor, "R U"], residual: Float[Tensor, "R D"]) -> None:
        """Adds rows."""
        exact = hidden.device.type == "cpu" or hidden.dtype == torch.float64
        kind = torch.float64 if exact else torch.float32
        h, e, place = hidden.to(kind), residual.to(kind), self.inner.device
        sums = h.sum(0).to(place).double()
        self.inner[:-1, :-1] += (h.mT @ h).to(place).double()
        self.inner[-1, :-1] += sums
        self.inner[:-1, -1] += sums
        self.inner[-1, -1] += len(h)
        self.cross[:-1] += (h.mT @ e).to(place).double()
        self.cross[-1] += e.sum(0).to(place).double()
        self.square += e.square().sum(0).to(place).double()

    def __add__(self, other: "Gram") -> "Gram":
        """The sums over the rows of both."""
        both = Gram(len(self.inner) - 1, len(self.square), self.inner.device)
        for total, own, its in zip(both.tensors, self.tensors, other.tensors, strict=True):
            total.copy_(own + its)
        return both

    @property
    def rows(self) -> int:
        """Number of rows so far."""
        return int(self.inner[-1, -1])

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """The sums themselves, for adding up those of several processes in place."""
        return self.inner, self.cross, self.square

    def solve(self, ridge: float, *, bias: bool = True) -> Float[Tensor, "V D"]:
        """The change of the weights that minimises the penalised squared residual, with a row for the bias if there is one."""
        system = ridge_system(self.inner, ridge)
        if not bias:
            return solve_positive(system[:-1, :-1], self.cross[:-1])
        return solve_positive(system, self.cross)

    def errors(self, change: Float[Tensor, "V D"] | None = None) -> Float[Tensor, " D"]:
        """Sum of the squared residual of each output channel after a change of the weights."""
        if change is None:
            return self.square.clone()
        inner, cross = self.inner[: len(change), : len(change)], self.cross[: len(change)]
        return (self.square + (change * (inner @ change - 2 * cross)).sum(0)).clamp(min=0)


def best_ridge(
    halves: tuple[Gram, Gram], weights: Float[Tensor, " D"] | float = 1.0, *, bias: bool = True, start: float = 1e-4
) -> float:
    """The ridge of least error on one half when fitted on the other, by steps of 10 from ``start`` on."""
    if not all(half.rows for half in halves):
        return start

    def error(power: int) -> float:
        ridge = start * 10.0**power
        pairs = (halves, halves[::-1])
        return sum(float((other.errors(own.solve(ridge, bias=bias)) * weights).sum()) for own, other in pairs)

    least, best = error(0), 0
    for step in (1, -1):
        power = step
        while 0.99e-7 < start * 10.0**power < 1.01 and (found := error(power)) < least:
            least, best, power = found, power, power + step
        if best:
            break
    return start * 10.0**best


def ridge_system(inner: Float[Tensor, "V V"], ridge: float) -> Float[Tensor, "V V"]:
    """``A = [h 1]ᵀ[h 1] + λI`` from ``[h 1]ᵀ[h 1]``, where the mean over the diagonal leaves out the ones."""
    diagonal = inner.diagonal()
    mean = diagonal[:-1].mean() if len(diagonal) > 1 else diagonal.new_zeros(())
    return inner + (ridge * mean) * torch.eye(len(inner), dtype=inner.dtype, device=inner.device)


def solve_positive(system: Float[Tensor, "V V"], right: Float[Tensor, "V D"]) -> Float[Tensor, "V D"]:
    """Solves a positive system; where it is singular, the solution of the least norm."""
    if not len(system):
        return right
    factor, failed = torch.linalg.cholesky_ex(system)
    if not failed:
        return torch.cholesky_solve(right, factor)
    values, vectors = torch.linalg.eigh(system)
    kept = values > values[-1].clamp(min=0) * len(values) * torch.finfo(values.dtype).eps
    inverse = torch.where(kept, values, 1).reciprocal() * kept
    solution: Tensor = vectors @ (inverse[:, None] * (vectors.mT @ right))
    return solution


def inverse_positive(system: Float[Tensor, "V V"]) -> Float[Tensor, "V V"]:
    """``A⁻¹`` of a positive system."""
    return solve_positive(system, torch.eye(len(system), dtype=system.dtype, device=system.device))


def weights_without(
    inverse: Float[Tensor, "V V"], weights: Float[Tensor, "V D"], gone: Sequence[int]
) -> Float[Tensor, "V D"]:
    """Weights refitted without some input channels, whose rows are zero."""
    rows = torch.as_tensor(gone, dtype=torch.long, device=weights.device)
    refitted = weights - inverse[:, rows] @ solve_positive(inverse[rows][:, rows], weights[rows])
    refitted[rows] = 0
    return refitted


def inverse_without(inverse: Float[Tensor, "V V"], gone: Sequence[int]) -> Float[Tensor, "V V"]:
    """The inverse of the system without some input channels, whose rows and columns are zero."""
    rows = torch.as_tensor(gone, dtype=torch.long, device=inverse.device)
    smaller = inverse - inverse[:, rows] @ solve_positive(inverse[rows][:, rows], inverse[rows])
    smaller[rows] = 0
    smaller[:, rows] = 0
    return smaller


@dataclass(frozen=True)
class Refitted:
    """A layer from which channels have gone: the rows of the weights that are left, ``A⁻¹`` of these, and their weights."""

    left: Int[Tensor, " K"]
    inverse: Float[Tensor, "K K"]
    weights: Float[Tensor, "K D"]

    def without(self, gone: Tensor) -> "Refitted":
        """The layer without some more rows."""
        mask = torch.isin(self.left, gone.to(self.left.device))
        places = mask.nonzero()[:, 0].tolist()
        inverse = inverse_without(self.inverse, places)[~mask][:, ~mask]
        return Refitted(self.left[~mask], inverse, weights_without(self.inverse, self.weights, places)[~mask])

    def weights_without(self, gone: Tensor, rows: int) -> Float[Tensor, "V D"]:
        """The weights without some more rows, with zeros in all rows that have gone."""
        whole = self.weights.new_zeros(rows, self.weights.shape[1])
        places = torch.isin(self.left, gone.to(self.left.device)).nonzero()[:, 0].tolist()
        whole[self.left] = weights_without(self.inverse, self.weights, places)
        return whole


def removal_cost(inverse: Float[Tensor, "V V"], weights: Float[Tensor, "V D"], gone: Sequence[int]) -> float:
    """Squared error, penalty included, that removing some channels together leaves after the refit."""
    rows = torch.as_tensor(gone, dtype=torch.long, device=weights.device)
    return float((weights[rows] * solve_positive(inverse[rows][:, rows], weights[rows])).sum())


def stacked(layer: nn.Linear | nn.Conv2d) -> Float[Tensor, "V D"]:
    """A layer's weights in float64, an output per column, the bias in the last row if there is one."""
    weight = layer.weight.detach().double().flatten(1).mT
    return weight if layer.bias is None else torch.cat([weight, layer.bias.detach().double()[None]])


def unstacked(layer: nn.Linear | nn.Conv2d, weights: Float[Tensor, "V D"]) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a layer, of its shape, type and device, from what :func:`stacked` returns."""
    own, bias = weights.to(layer.weight), None
    if layer.bias is not None:
        own, bias = own[:-1], own[-1]
    return own.mT.reshape(layer.weight.shape), bias
