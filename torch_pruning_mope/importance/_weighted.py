"""A weighted sum of criteria."""

from collections.abc import Sequence
from typing import Any

import torch
import torch_pruning as tp
from jaxtyping import Float
from torch import Tensor

from ..encoder import EncoderCore
from ..surgery import removal_group
from ._unit import GRADIENT_CRITERIA, Key, UnitImportance, call_criterion, unit_sublayers


class WeightedImportance(UnitImportance):
    """A weighted sum of criteria, each divided by its mean magnitude over all layers of a kind.

    With a single criterion it keeps that criterion's order, but strictly, and with the counts exact under global pruning.

    Args:
        encoder: The dual encoder that the pruner prunes.
        criteria: Pairs of an importance (MoPE's or Torch-Pruning's) and its weight.
        fallback: Torch-Pruning importance of all other groups; None leaves them alone.
        min_heads: Heads that every layer keeps.
        min_neurons: Neurons that every layer keeps.

    Raises:
        ValueError: If there are no criteria, a weight is not positive, or criteria want different gradients in ``.grad``.
    """

    def __init__(
        self,
        encoder: EncoderCore,
        criteria: Sequence[tuple[Any, float]],
        *,
        fallback: Any = None,
        min_heads: int = 1,
        min_neurons: int = 2,
    ) -> None:
        super().__init__(encoder, fallback=fallback, min_heads=min_heads, min_neurons=min_neurons)
        if not criteria or any(not callable(criterion) or weight <= 0 for criterion, weight in criteria):
            raise ValueError(
                "criteria must be a non-empty sequence of (importance, positive weight); found "
                f"{[(type(criterion).__name__, weight) for criterion, weight in criteria]}."
            )
        wanted = {kind for kind in GRADIENT_CRITERIA for criterion, _ in criteria if isinstance(criterion, kind)}
        if len(wanted) > 1:
            raise ValueError(
                "criteria must not mix Taylor, which reads mean gradients from .grad, and Hessian, which reads squared ones; "
                "found both. Use one of them."
            )
        self.criteria = tuple(criteria)

    def _raw(self, graph: tp.DependencyGraph) -> dict[Key, Float[Tensor, "U"]]:
        total: dict[Key, Tensor] = {}
        for criterion, weight in self.criteria:
            parts = criterion._raw(graph) if isinstance(criterion, UnitImportance) else self._stock(criterion, graph)
            for kind in ("head", "neurons"):
                keys = [key for key in parts if key[0] == kind]
                scale = torch.cat([parts[key].double() for key in keys]).abs().mean() if keys else torch.ones(())
                for key in keys:
                    scaled = weight * parts[key].double() / (scale if scale > 0 else 1.0)
                    total[key] = total[key] + scaled if key in total else scaled
        return total

    def _stock(self, criterion: Any, graph: tp.DependencyGraph) -> dict[Key, Tensor]:
        """A Torch-Pruning criterion on every layer's heads (mean over channels, as Torch-Pruning does) and neurons."""
        raw: dict[Key, Tensor] = {}
        for key, sublayer, output in unit_sublayers(self.encoder):
            values = call_criterion(criterion, removal_group(graph, output))
            if values is None:
                raise ValueError(f"criteria must score every head and neuron; {type(criterion).__name__} skips {key}.")
            raw[key] = values.detach().cpu().view(-1, sublayer.unit_size).mean(1)
        return raw
