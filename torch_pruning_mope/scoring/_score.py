"""MoPE: what a zero-shot metric loses when a unit is removed (Lin et al., CVPR 2024, arXiv 2403.07839).

``MoPE(unit) = Z(model) - Z(model without the unit)``.
"""

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from ..data import Pairs
from ..encoder import DualEncoder, TowerName
from ..metrics import Metric, MetricLike, normalised, resolve_metric
from ._curves import isotonic_pools, pooled
from ._engine import dense_embeddings, prefix_ablations
from ._plain import embeddings, plain_ablations
from ._rewire import Rewiring, neuron_orders
from ._table import Score, ScoreTable, fingerprint
from ._units import KINDS, Ablation, Unit, enumerate_units, nested_ablations, single_ablation

PairsLike = Pairs | Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class _Loss:
    """What Z loses under one ablation; ``shares`` are each calibration image's part of it, if the metric has them."""

    value: float
    shares: Float[Tensor, "I"] | None


def score(
    encoder: DualEncoder,
    pairs: PairsLike,
    *,
    metric: MetricLike = "recall_mean",
    kinds: Collection[str] = ("head", "neurons"),
    groups: int = 16,
    interaction: Literal["single", "nested"] = "nested",
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
        interaction: ``single``: each neuron group is removed alone, as in the paper. ``nested`` (ours): the lowest groups
            go together, one more at a time, and a group's score is the isotonic increment. Heads and blocks are always
            removed alone.
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
    families = list(_families(units, interaction))
    embed = dense_embeddings if engine == "prefix" else embeddings
    inputs: dict[TowerName, Tensor] = {"image": pairs.images, "text": pairs.tokens}
    dense = {name: normalised(embed(encoder, name, part, batch_size), name) for name, part in inputs.items()}
    baseline = _evaluate(measure, dense["image"][None], dense["text"][None], pairs)[0]
    with tqdm(total=len(units), desc="MoPE", unit="unit", disable=not progress, delay=2, leave=False) as bar:
        losses = {
            ablation: loss
            for tower in dense
            for ablation, loss in _losses(
                encoder, tower, dense, baseline, pairs, measure,
                [a for family in families for a in family.ablations if a.tower == tower], engine, batch_size, bar,
            )
        }  # fmt: skip
    return ScoreTable(
        scores=tuple(s for family in families for s in _scores(family, [losses[a] for a in family.ablations])),
        dense=baseline.value,
        metric=measure.name,
        weights=fingerprint(encoder.model),
        pairs=pairs.fingerprint(),
        settings={
            "groups": groups,
            "interaction": interaction,
            "rewire": rewire if isinstance(rewire, str) else type(rewire).__name__,
        },
    )


@dataclass(frozen=True)
class _Family:
    """Units whose scores come from each other's ablations: the nested groups of one MLP, or any single unit."""

    units: Sequence[Unit]
    ablations: Sequence[Ablation]


def _families(units: Sequence[Unit], interaction: str) -> Iterator[_Family]:
    layers: dict[tuple[str, int], list[Unit]] = {}
    for unit in units:
        if unit.kind == "neurons" and interaction == "nested":
            layers.setdefault((unit.tower, unit.layer), []).append(unit)
        else:
            yield _Family([unit], [single_ablation(unit)])
    for members in layers.values():
        yield _Family(members, nested_ablations(members))


def _evaluate(metric: Metric, images: Tensor, texts: Tensor, pairs: Pairs) -> list[_Loss]:
    """The metric under each of some ablations, as a gain to begin with."""
    index = pairs.image_index.to(images.device)
    shares = metric.per_image(images, texts, index)
    if shares is None:
        return [_Loss(value, None) for value in metric.values(images, texts, index)]
    shares = shares.cpu().double()
    return [_Loss(float(row.mean()), row) for row in shares]


def _losses(
    encoder: DualEncoder,
    tower: TowerName,
    dense: dict[TowerName, Tensor],
    baseline: _Loss,
    pairs: Pairs,
    metric: Metric,
    ablations: Sequence[Ablation],
    engine: str,
    batch_size: int,
    bar: "tqdm[None]",
) -> Iterator[tuple[Ablation, _Loss]]:
    """What the metric loses under each ablation of one tower, while the other tower's embeddings stay as they are."""
    run = prefix_ablations if engine == "prefix" else plain_ablations
    inputs = pairs.images if tower == "image" else pairs.tokens
    for positions, ablated in run(encoder, tower, inputs, ablations, batch_size):
        embedded = {name: values[None] for name, values in dense.items()} | {tower: normalised(ablated, tower)}
        for position, result in zip(
            positions, _evaluate(metric, embedded["image"], embedded["text"], pairs), strict=True
        ):
            shares = None if result.shares is None or baseline.shares is None else baseline.shares - result.shares
            yield ablations[position], _Loss(baseline.value - result.value, shares)
        bar.update(len(positions))


def _scores(family: _Family, losses: Sequence[_Loss]) -> Iterator[Score]:
    values = torch.tensor([loss.value for loss in losses], dtype=torch.double)
    increments = values.diff(prepend=values.new_zeros(1))
    pools = isotonic_pools(increments)
    scores, errors = pooled(increments, pools), torch.full_like(values, math.nan)
    shares = [loss.shares for loss in losses if loss.shares is not None]
    if len(shares) == len(losses):
        per_image = torch.stack(shares)
        per_image = pooled(per_image.diff(dim=0, prepend=torch.zeros_like(per_image[:1])), pools)
        errors = per_image.std(1) / math.sqrt(per_image.shape[1])
    for unit, loss, value, error in zip(family.units, losses, scores.tolist(), errors.tolist(), strict=True):
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
        ("interaction", interaction, ("single", "nested")),
        ("engine", engine, ("prefix", "plain")),
    ):
        if value not in known:
            raise ValueError(f"{name} must be one of {known}; found {value!r}.")
