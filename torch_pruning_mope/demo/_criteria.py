"""The criteria that the demo compares, each as an importance for :func:`torch_pruning_mope.prune`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch_pruning as tp

from ..data import Pairs
from ..dual_encoder import DualEncoder
from ..importance import MoPEImportance, UnitImportance, WeightedImportance


@dataclass(frozen=True)
class Criterion:
    """One way to choose what goes.

    Attributes:
        label: Its name in print.
        importance: Makes its importance, from an encoder, calibration pairs, and whether to show progress bars. May fill
            the ``.grad`` of the encoder's model.
    """

    label: str
    importance: Callable[[DualEncoder, Pairs, bool], UnitImportance]


def _mope(encoder: DualEncoder, pairs: Pairs, progress: bool) -> UnitImportance:
    """MoPE of heads and of nested neuron groups under the contrastive loss, which ranks neurons better than recall does."""
    return MoPEImportance(encoder, pairs, metric="contrastive_loss", progress=progress)


def _fisher(encoder: DualEncoder, pairs: Pairs, progress: bool) -> UnitImportance:
    encoder.accumulate_gradients(pairs, squared=True, progress=progress)
    return _alone(encoder, tp.importance.GroupHessianImportance())


def _taylor(encoder: DualEncoder, pairs: Pairs, progress: bool) -> UnitImportance:
    encoder.accumulate_gradients(pairs, progress=progress)
    return _alone(encoder, tp.importance.GroupTaylorImportance())


def _l1(encoder: DualEncoder, pairs: Pairs, progress: bool) -> UnitImportance:  # noqa: ARG001
    return _alone(encoder, tp.importance.GroupMagnitudeImportance(p=1))


def _random(encoder: DualEncoder, pairs: Pairs, progress: bool) -> UnitImportance:  # noqa: ARG001
    return _alone(encoder, tp.importance.RandomImportance())


def _alone(encoder: DualEncoder, criterion: Any) -> UnitImportance:
    """A Torch-Pruning criterion whose order is strict, so that the counts are those of all the others."""
    return WeightedImportance(encoder, [(criterion, 1.0)])


CRITERIA = {
    "mope": Criterion("MoPE", _mope),
    "fisher": Criterion("Fisher", _fisher),
    "taylor": Criterion("Taylor", _taylor),
    "l1": Criterion("L1 magnitude", _l1),
    "random": Criterion("random", _random),
}
"""By their names in the rows, in the order of the table."""
