"""Ratios that stay exact in Torch-Pruning's arithmetic, and head counts that notice a model that others have cut."""

import math
from collections.abc import Mapping
from typing import Any

from torch import nn

from ..errors import WrongModelError


def width_of(output: Any) -> int:
    return int(output.weight.shape[0])


class Ratio(float):
    """A ratio, of which Torch-Pruning's ``int(total * (1 - ratio))`` keeps exactly what :func:`share` leaves."""

    def __rsub__(self, one: Any) -> Any:
        return _Kept(self)

    def at(self, progress: float) -> "Ratio":
        """The share of it that the steps so far have removed."""
        return Ratio(float(self) * progress)


class _Kept:
    """``1 - ratio``, to multiply a total with."""

    def __init__(self, ratio: float) -> None:
        self._ratio = float(ratio)

    def __rmul__(self, total: Any) -> int:
        return int(total) - share(self._ratio, total)


class HeadRatio(Ratio):
    """A layer's head ratio that knows the head count it is a share of.

    For heads of a single layer, Torch-Pruning takes the ceiling of the cumulative ratio times the heads that are *left*, and so
    removes too many over several steps.
    """

    heads: int

    @classmethod
    def of(cls, ratio: float, heads: int) -> "HeadRatio":
        made = cls(ratio)
        made.heads = heads
        return made

    def at(self, progress: float) -> "HeadRatio":
        return self.of(float(self) * progress, self.heads)

    def __mul__(self, left: Any) -> int:
        return max(0, share(float(self), self.heads) - (self.heads - int(left)))


class HeadCounts(dict[nn.Module, int]):
    """Head counts by projection, which Torch-Pruning lowers before it cuts; refuses once others have cut the projections."""

    def __init__(self, counts: Mapping[nn.Module, int]) -> None:
        super().__init__(counts)
        self._sizes = {projection: width_of(projection) // count for projection, count in counts.items()}

    def __getitem__(self, projection: nn.Module) -> int:
        count = super().__getitem__(projection)
        if count * self._sizes[projection] > width_of(projection):
            raise WrongModelError(
                "model must be as it was when pruner_arguments was called, but for what the pruner itself removes; found "
                "fewer heads. Call pruner_arguments anew and build another pruner."
            )
        return count


def scheduler(ratio: float, steps: int) -> list[float]:
    """Cumulative ratios per step, after a 0; Torch-Pruning's constructor calls it on every ratio that it was given."""
    if not isinstance(ratio, Ratio):
        raise ValueError(
            "pruning_ratio, head_pruning_ratio and their dictionaries must stay as pruner_arguments makes them; found a ratio "
            f"of {ratio!r} in their place. Give head_ratio, ffn_ratio, width_ratio or pruning_ratio_dict to pruner_arguments."
        )
    return [ratio.at(step / steps) for step in range(steps + 1)]


def share(ratio: float, total: int) -> int:
    """Number of ``total`` that a ratio removes: the ceiling, as Torch-Pruning rounds, free of floating-point surprises."""
    return math.ceil(ratio * total - 1e-9)
