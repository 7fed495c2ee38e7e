"""Torch-Pruning's own criteria as score tables, so that a plan by them can be compared with MoPE's at the same budget."""

import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
import torch_pruning as tp
from torch import Tensor, nn

from .._fingerprint import fingerprint
from .._state import own_gradients
from ..cost import freed_parameters
from ..data import Pairs
from ..encoder import EncoderCore
from ..scoring import Score, ScoreTable, accumulate_gradients
from ..surgery import removal_group
from ..towers import Prunable, Unit
from ._unit import Key, check_finite, unit_sublayers

Stock = Literal["l1", "taylor", "hessian", "random"]
_ADDS_UP = {"group_reduction": "sum", "normalizer": None}
"""A unit's importance is the sum over its weights."""


def stock_scores(encoder: EncoderCore, pairs: Pairs, criterion: Stock, *, seed: int = 0) -> ScoreTable:
    """Ranks single heads and neurons of both towers by one of Torch-Pruning's criteria, per parameter that they free.

    The table is an order of everything, as of ``interaction="joint"``, that :func:`make_plan` cuts at any budget. Its numbers
    are the criterion's and not losses of a metric.

    Args:
        encoder: The dual encoder; left as it is.
        pairs: Calibration pairs, for the gradients of ``taylor`` and ``hessian``.
        criterion: ``l1``, ``taylor``, ``hessian`` (squared gradients of single pairs, the empirical Fisher) or ``random``.
        seed: Of the random order.

    Returns:
        A score for every head and every neuron, what goes first in front.

    Raises:
        ValueError: If the criterion is none of these.
        NonFiniteError: If it yields NaN or infinity.
    """
    if criterion not in get_args(Stock):
        raise ValueError(f"criterion must be one of {', '.join(get_args(Stock))}; found {criterion!r}.")
    raw = _raw(encoder, pairs, criterion, seed)
    check_finite(raw)
    settings = {"interaction": "joint", "criterion": criterion} | ({"seed": seed} if criterion == "random" else {})
    scores = tuple(_ranked(encoder, raw, per_parameter=criterion != "random"))
    return ScoreTable(scores, 0.0, criterion, fingerprint(encoder.model), pairs.fingerprint(), settings)


def _sublayers(encoder: EncoderCore) -> list[tuple[Key, Prunable, nn.Module]]:
    """Those of the towers that embed."""
    return [entry for entry in unit_sublayers(encoder) if entry[0][1] != "decoder"]


def _raw(encoder: EncoderCore, pairs: Pairs, name: Stock, seed: int) -> dict[Key, Tensor]:
    """The criterion, summed over each head's channels and each neuron's group."""
    if name == "random":
        generator = torch.Generator().manual_seed(seed)
        return {key: torch.rand(units.num_units, generator=generator) for key, units, _ in _sublayers(encoder)}
    criterion: Any = {
        "l1": lambda: tp.importance.GroupMagnitudeImportance(p=1, **_ADDS_UP),
        "taylor": lambda: tp.importance.GroupTaylorImportance(bias=True, **_ADDS_UP),
        "hessian": lambda: tp.importance.GroupHessianImportance(bias=True, **_ADDS_UP),
    }[name]()
    found: dict[Key, Tensor] = {}
    with own_gradients(encoder.model):
        if name != "l1":
            accumulate_gradients(encoder, pairs, squared=name == "hessian", batch_size=64)
        graph = encoder.dependency_graph()
        for key, units, output in _sublayers(encoder):
            values = criterion(removal_group(graph, output))
            found[key] = values.detach().double().cpu().view(-1, units.unit_size).sum(1)
    return found


def _ranked(encoder: EncoderCore, raw: Mapping[Key, Tensor], *, per_parameter: bool) -> list[Score]:
    scores: list[Score] = []
    for key, units, _ in _sublayers(encoder):
        (kind, tower, layer), size = key, units.unit_size
        for rank, place in enumerate(raw[key].argsort(stable=True).tolist()):
            channels = tuple(range(place * size, (place + 1) * size))
            unit = Unit(kind, tower, layer, place if kind == "head" else rank, channels)  # type: ignore[arg-type]
            freed = freed_parameters(encoder, unit) if not rank else scores[-1].parameters
            value = float(raw[key][place]) / (freed or 1 if per_parameter else 1)
            scores.append(Score(unit, value, math.nan, value, freed))
    return sorted(scores, key=lambda score: score.value)
