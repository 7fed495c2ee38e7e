"""Rewiring: the order of an MLP's neurons before they are cut into groups (DynaBERT, arXiv 2004.04037)."""

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch_pruning as tp
from torch import Tensor

from .._state import own_gradients
from ..data import Pairs
from ..encoder import EncoderCore
from ..errors import NonFiniteError
from ..towers import Prunable
from ._gradients import accumulate_gradients
from ._ranks import Ranks
from ._refit import Place, Refits
from ._units import Orders

Rewiring = Literal["taylor", "none", "obs"] | Callable[[Any], Tensor | None]
"""``taylor``, ``none``, ``obs``, or any Torch-Pruning importance."""


def neuron_orders(encoder: EncoderCore, pairs: Pairs, rewire: Rewiring, ranks: Ranks | None = None) -> Orders:
    """Neurons of each MLP, least important first, by (tower, layer); none for ``none``."""
    if rewire == "none":
        return {}
    if rewire == "obs":
        found = _by_refit(encoder, pairs)
        rest = not found.keys() >= {place[:2] for place in _mlps(encoder)}
        return dict(neuron_orders(encoder, pairs, "taylor", ranks)) | found if rest else found
    if rewire == "taylor":
        rewire = tp.importance.GroupTaylorImportance(group_reduction="sum", normalizer=None, bias=True)
    if not callable(rewire):
        raise ValueError(f"rewire must be 'taylor', 'none', 'obs' or a Torch-Pruning importance; found {rewire!r}.")
    hessian = isinstance(rewire, tp.importance.GroupHessianImportance)
    orders: dict[tuple[str, int], list[int]] = {}
    with own_gradients(encoder.model):
        if hessian or isinstance(rewire, tp.importance.GroupTaylorImportance):
            accumulate_gradients(encoder, pairs, squared=hessian, batch_size=64, ranks=ranks)
        graph = encoder.dependency_graph()
        for (tower, index, _), units in _mlps(encoder).items():
            first, channels = units.sources[0], list(range(units.channels))
            makes = graph.get_pruner_of_module(first).prune_out_channels
            importance = rewire(graph.get_pruning_group(first, makes, channels))
            name = f"{tower} layer {index}"
            if importance is None or importance.shape != (units.channels,):
                raise ValueError(f"rewire must score each neuron of {name}; found {importance!r}.")
            if not torch.isfinite(importance).all():
                raise NonFiniteError(f"rewire must yield finite scores; found NaN or infinity in {name}.")
            orders[tower, index] = importance.argsort(stable=True).tolist()
    return orders


def _by_refit(encoder: EncoderCore, pairs: Pairs) -> dict[tuple[Any, int], list[int]]:
    refits = Refits(encoder, {"image": pairs.images, "text": pairs.tokens}, list(_mlps(encoder)))
    return {place[:2]: refits.costs(place).argsort(stable=True).tolist() for place in _mlps(encoder) if place in refits}


def _mlps(encoder: EncoderCore) -> dict[Place, Prunable]:
    return {p: units for p, units in encoder.sublayers.items() if p[2] == "neurons" and p[0] != "decoder"}
