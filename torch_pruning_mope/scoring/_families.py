"""Units that are removed together or one after another, and scores from their losses."""

import math
from collections.abc import Iterator, Sequence
from typing import Literal

import torch

from ..cost import freed_parameters
from ..encoder import EncoderCore
from ..towers import Unit
from ._curves import isotonic_pools, pooled
from ._greedy import greedy_path
from ._loss import Loss
from ._meter import Meter
from ._progress import Progress
from ._table import Score
from ._units import Ablation, nested_ablations

Interaction = Literal["single", "nested", "greedy", "joint"]
Family = list[tuple[Unit, Loss]]
"""Units in the order in which they go, each with the loss once it and those before it are gone."""


def families(
    meter: Meter, encoder: EncoderCore, units: Sequence[Unit], interaction: Interaction, most: int | None, bar: Progress
) -> Iterator[Family]:
    """Measures units by families: a path, an MLP's nested groups, or any unit by itself."""

    def removed(unit: Unit, loss: Loss) -> None:
        bar.scored(unit, loss.value)

    if interaction == "joint":
        sizes = {unit: freed_parameters(encoder, unit) for unit in units}
        yield greedy_path(meter, sizes, budget=most, evaluated=bar.evaluated, removed=removed)
        return
    paths: dict[object, list[Unit]] = {}
    for unit in units:
        greedy = interaction == "greedy" and unit.kind != "neurons"
        nested = interaction != "single" and unit.kind == "neurons"
        key = unit.kind if greedy else (unit.tower, unit.layer) if nested else unit
        paths.setdefault(key, []).append(unit)
    owner: dict[Ablation, Unit] = {}
    for group, members in paths.items():
        if isinstance(group, str):
            yield greedy_path(meter, dict.fromkeys(members, 1), evaluated=bar.evaluated, removed=removed)
        else:
            owner |= dict(zip(nested_ablations(members), members, strict=True))
    losses: dict[Unit, Loss] = {}
    for ablation, loss in meter.losses(list(owner)):
        losses[owner[ablation]] = loss
        bar.evaluated(owner[ablation])
        bar.scored(owner[ablation], loss.value)
    for group, members in paths.items():
        if not isinstance(group, str):
            yield [(unit, losses[unit]) for unit in members]


def scores_of(family: Family, encoder: EncoderCore, images: int, per_parameter: bool) -> Iterator[Score]:
    """Isotonic increments along a family, with the standard errors of their paired differences per calibration image."""
    values = torch.tensor([loss.value for _, loss in family], dtype=torch.double)
    increments = values.diff(prepend=values.new_zeros(1))
    freed = [freed_parameters(encoder, unit) for unit, _ in family]
    sizes = torch.tensor(freed, dtype=torch.double) if per_parameter else None
    pools = isotonic_pools(increments, sizes)
    scores, errors = pooled(increments, pools, sizes), torch.full_like(values, math.nan)
    found = [loss.shares for _, loss in family if loss.shares is not None]
    if len(found) == len(family):
        shares = torch.stack(found)
        shares = pooled(shares.diff(dim=0, prepend=torch.zeros_like(shares[:1])), pools, sizes)
        errors = shares.std(1) / math.sqrt(shares.shape[1])
    for (unit, loss), value, error, size in zip(family, scores.tolist(), errors.tolist(), freed, strict=True):
        yield Score(unit, value, error, loss.value, size, images)
