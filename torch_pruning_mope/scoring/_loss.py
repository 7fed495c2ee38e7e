"""Losses of a metric."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Loss:
    """Drop of a metric against the whole model.

    Attributes:
        value: The loss, in the metric's units.
        shares: Each calibration image's part of it, ``[I]``; their mean is ``value``. None if the metric has none.
    """

    value: float
    shares: Float[Tensor, "I"] | None
