"""Losses of a metric."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
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


def stacked_shares(losses: Sequence[Loss]) -> Float[Tensor, "K I"] | None:
    """The shares of several losses, or None if one has none."""
    found = [loss.shares for loss in losses if loss.shares is not None]
    return torch.stack(found) if len(found) == len(losses) else None
