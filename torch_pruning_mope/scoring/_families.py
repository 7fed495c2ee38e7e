"""Units that are removed together or one after another, and scores from their losses."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from ..cost import freed_parameters
from ..encoder import EncoderCore, TowerName
from ..towers import Unit
from ._greedy import greedy_path
from ._journal import Loss
from ._meter import Meter
from ._table import Score
from ._units import Ablation, nested_ablations


class Progress:
    """A progress bar: units done, queries per second, time left, the units missed least and most so far."""

    def __init__(
        self, units: Sequence[Unit], queries: Mapping[TowerName, int], layers: Mapping[TowerName, int], *, show: bool
    ) -> None:
        self._queries, self._layers = queries, layers
        self._count, self._done, self._run = len(units), 0, 0
        self._least: tuple[float, Unit] | None = None
        self._most: tuple[float, Unit] | None = None
        self._began = time.perf_counter()
        self._bar = tqdm(
            total=sum(self._work(unit) for unit in units),
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}",
            desc=f"MoPE 0/{self._count} units",
            disable=not show,
            delay=2,
            leave=False,
            dynamic_ncols=True,
        )
        self.close = self._bar.close

    def evaluated(self, unit: Unit) -> None:
        """Counts one evaluation of a unit."""
        self._run += self._queries[unit.tower]

    def scored(self, unit: Unit, loss: float) -> None:
        """Counts a finished unit, with the metric's loss without it (and those that go before it)."""
        self._done += 1
        self._least = min(self._least or (loss, unit), (loss, unit), key=itemgetter(0))
        self._most = max(self._most or (loss, unit), (loss, unit), key=itemgetter(0))
        rate = self._run / max(1e-9, time.perf_counter() - self._began)
        least, most = (f"{found[1]} ({100 * found[0]:+.2f})" for found in (self._least, self._most))
        self._bar.set_description_str(f"MoPE {self._done}/{self._count} units", refresh=False)
        self._bar.set_postfix_str(f"{rate:.0f} queries/s, least missed {least}, most {most}", refresh=False)
        self._bar.update(self._work(unit))

    def _work(self, unit: Unit) -> int:
        """Layers that the unit's evaluation runs, times the inputs."""
        return (self._layers[unit.tower] - unit.layer) * self._queries[unit.tower]


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


def isotonic_pools(increments: Float[Tensor, "G"], sizes: Float[Tensor, "G"] | None = None) -> Int[Tensor, "G"]:
    """Pools of the isotonic (non-decreasing, weighted least-squares) fit of increments per size, by adjacent violators."""
    # Losses along a path are noisy, and need not grow. Spread over its pool, an increment does: a threshold on scores
    # per size then always cuts a prefix of the path. (Not in the paper, which removes units one at a time.)
    pools: list[tuple[float, float, int]] = []
    for value, size in zip(increments.tolist(), _sizes(increments, sizes).tolist(), strict=True):
        total, weight, count = value, size, 1
        while pools and pools[-1][0] / pools[-1][1] >= total / weight:
            before = pools.pop()
            total, weight, count = total + before[0], weight + before[1], count + before[2]
        pools.append((total, weight, count))
    return torch.repeat_interleave(torch.tensor([count for _, _, count in pools]))


def pooled(
    values: Float[Tensor, "G ..."], pools: Int[Tensor, "G"], sizes: Float[Tensor, "G"] | None = None
) -> Float[Tensor, "G ..."]:
    """Each pool's total, spread over its units by their sizes, which are equal by default."""
    weights = _sizes(values, sizes).to(values.dtype)
    count = int(pools.max()) + 1
    totals = values.new_zeros(count, *values.shape[1:]).index_add_(0, pools, values)
    shares = weights / weights.new_zeros(count).index_add_(0, pools, weights)[pools]
    return totals[pools] * shares.view(-1, *[1] * (values.ndim - 1))


def _sizes(values: Tensor, sizes: Tensor | None) -> Tensor:
    return torch.ones(len(values), dtype=torch.double) if sizes is None else sizes
