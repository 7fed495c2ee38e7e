"""MoPE: what a zero-shot metric loses when a unit is removed (Lin et al., CVPR 2024, arXiv 2403.07839).

``MoPE(unit) = Z(model) - Z(model without the unit)``.
"""

import math
from collections.abc import Collection, Iterator, Sequence
from typing import Literal

import torch
from tqdm import tqdm

from ..data import Pairs
from ..encoder import DualEncoder
from ..metrics import MetricLike, resolve_metric
from ._curves import isotonic_pools, pooled
from ._greedy import greedy_path
from ._meter import Loss, Meter, PairsLike, stacked_shares
from ._rewire import Rewiring, neuron_orders
from ._table import Score, ScoreTable, fingerprint
from ._units import KINDS, Ablation, Unit, enumerate_units, nested_ablations, single_ablation

Interaction = Literal["single", "nested", "greedy"]
_Family = list[tuple[Unit, Loss]]
"""Units in the order in which they go, each with the loss once it and those before it are gone."""


def score(
    encoder: DualEncoder,
    pairs: PairsLike,
    *,
    metric: MetricLike = "recall_mean",
    kinds: Collection[str] = ("head", "neurons"),
    groups: int = 16,
    interaction: Interaction = "nested",
    rewire: Rewiring = "taylor",
    towers: Collection[str] = ("image", "text"),
    engine: Literal["prefix", "plain"] = "prefix",
    batch_size: int = 128,
    progress: bool = True,
) -> ScoreTable:
    """Scores the units of a dual encoder, which is left exactly as it was.

    Args:
        encoder: The dual encoder.
        pairs: Calibration pairs, or any iterable of ``(images, tokens)`` batches. Never the pairs that results are
            reported on.
        metric: Z, higher is better; see :func:`torch_pruning_mope.metrics.resolve_metric`.
        kinds: Which units: ``head``, ``neurons``, ``block``.
        groups: Neuron groups per MLP (the paper gives no number; DynaBERT's rewiring uses such groups).
        interaction: ``single``: each unit is removed alone, as in the paper. ``nested`` (ours): an MLP's lowest neuron
            groups go together, one more at a time, and a group's score is the isotonic increment. ``greedy`` (ours): besides,
            heads and blocks go one after another over both towers, the least missed first, re-scored as others have gone.
        rewire: How an MLP's neurons are ordered before they are grouped: ``taylor``, ``none``, or a Torch-Pruning importance.
        towers: Which towers.
        engine: ``prefix`` reuses what an ablation cannot change; ``plain`` evaluates the whole tower each time.
        batch_size: Sequences run at once.
        progress: Whether to show a progress bar.

    Returns:
        The score table.

    Raises:
        ValueError: If an argument is not one of the above, or the captions do not fit the model.
        MetricError: If the metric cannot be used.
        NonFiniteError: If an embedding is NaN or infinite.
    """
    _check(kinds, groups, interaction, towers, engine, batch_size)
    measure = resolve_metric(metric, float(torch.as_tensor(encoder.logit_scale).detach()))
    pairs = Pairs.coerce(pairs)
    encoder.text.check_inputs(pairs.tokens)
    encoder.image.check_inputs(pairs.images)
    orders = neuron_orders(encoder, pairs, rewire) if "neurons" in kinds else {}
    units = enumerate_units(encoder, kinds, orders, groups, towers)
    meter = Meter(encoder, pairs, measure, engine, batch_size)
    with tqdm(total=len(units), desc="MoPE", unit="unit", disable=not progress, delay=2, leave=False) as bar:
        families = list(_families(meter, units, interaction, bar))
    return ScoreTable(
        scores=tuple(score for family in families for score in _scores(family)),
        dense=meter.dense,
        metric=measure.name,
        weights=fingerprint(encoder.model),
        pairs=pairs.fingerprint(),
        settings={
            "groups": groups,
            "interaction": interaction,
            "rewire": rewire if isinstance(rewire, str) else type(rewire).__name__,
            "evaluations": meter.evaluations,
        },
    )


def _families(meter: Meter, units: Sequence[Unit], interaction: Interaction, bar: "tqdm[None]") -> Iterator[_Family]:
    """Units whose scores come from each other's removal: a greedy path, an MLP's nested groups, or any unit by itself."""
    paths: dict[object, list[Unit]] = {}
    for unit in units:
        greedy = interaction == "greedy" and unit.kind != "neurons"
        nested = interaction != "single" and unit.kind == "neurons"
        key = unit.kind if greedy else (unit.tower, unit.layer) if nested else unit
        paths.setdefault(key, []).append(unit)
    owner: dict[Ablation, Unit] = {}
    for group, members in paths.items():
        if isinstance(group, str):
            alone = {single_ablation(unit): unit for unit in members}
            path = greedy_path(meter, list(alone), advance=bar.update)
            yield [(alone[ablation], loss) for ablation, loss in path]
        else:
            owner |= dict(zip(nested_ablations(members), members, strict=True))
    losses: dict[Unit, Loss] = {}
    for ablation, loss in meter.losses(list(owner)):
        losses[owner[ablation]] = loss
        bar.update()
    for group, members in paths.items():
        if not isinstance(group, str):
            yield [(unit, losses[unit]) for unit in members]


def _scores(family: _Family) -> Iterator[Score]:
    """Isotonic increments along a family, with the standard error of their paired differences per calibration image."""
    values = torch.tensor([loss.value for _, loss in family], dtype=torch.double)
    increments = values.diff(prepend=values.new_zeros(1))
    pools = isotonic_pools(increments)
    scores, errors = pooled(increments, pools), torch.full_like(values, math.nan)
    shares = stacked_shares([loss for _, loss in family])
    if shares is not None:
        shares = pooled(shares.diff(dim=0, prepend=torch.zeros_like(shares[:1])), pools)
        errors = shares.std(1) / math.sqrt(shares.shape[1])
    for (unit, loss), value, error in zip(family, scores.tolist(), errors.tolist(), strict=True):
        yield Score(unit, value, error, loss.value)


def _check(
    kinds: Collection[str], groups: int, interaction: str, towers: Collection[str], engine: str, batch_size: int
) -> None:
    if isinstance(kinds, str) or not kinds or set(kinds) - set(KINDS):
        raise ValueError(f"kinds must be some of {KINDS}; found {kinds!r}.")
    if isinstance(towers, str) or not towers or set(towers) - {"image", "text"}:
        raise ValueError(f"towers must be ('image',), ('text',) or both; found {towers!r}.")
    if groups < 1:
        raise ValueError(f"groups must be at least 1; found {groups}.")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1; found {batch_size}.")
    for name, value, known in (
        ("interaction", interaction, ("single", "nested", "greedy")),
        ("engine", engine, ("prefix", "plain")),
    ):
        if value not in known:
            raise ValueError(f"{name} must be one of {known}; found {value!r}.")
