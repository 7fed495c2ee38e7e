"""Torch-Pruning's own criteria, called with a look at what they need first."""

from typing import Any

import torch_pruning as tp
from torch import Tensor, nn

from ..errors import MissingGradientsError

GRADIENT_CRITERIA = (tp.importance.GroupTaylorImportance, tp.importance.GroupHessianImportance)


def call_criterion(criterion: Any, group: Any) -> Tensor | None:
    """Calls a Torch-Pruning criterion, which reads ``.grad`` without looking (trap W)."""
    if isinstance(criterion, GRADIENT_CRITERIA) and not getattr(criterion, "_accu_grad", None):
        layers = [dep.target.module for dep, _ in group if isinstance(dep.target.module, nn.Linear | nn.Conv2d)]
        if any(parameter.grad is None for layer in layers for parameter in layer.parameters()):
            squared = isinstance(criterion, tp.importance.GroupHessianImportance)
            raise MissingGradientsError(
                f"{type(criterion).__name__} needs gradients in .grad; found None. Call encoder.accumulate_gradients(pairs"
                f"{', squared=True' if squared else ''}) before pruner.step()."
            )
    result: Tensor | None = criterion(group)
    return result
