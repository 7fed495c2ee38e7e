"""Scoring for a known cut: adaptive scores of units, from what the processes measure together."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from .._ranks import Ranks
from ..data import Pairs
from ..encoder import EncoderCore, TowerName
from ..metrics import Metric
from ._adaptive import AdaptiveScore, adaptive_scores
from ._joint import freed_parameters
from ._meter import Meter
from ._prediction import ablation_features
from ._progress import Progress
from ._table import Score
from ._units import Ablation, Unit, single_ablation

Cut = Mapping[str, int | float]
"""How many units of a kind will go, over all layers of the towers that are scored: a count, or a share below 1."""


def check_cut(cut: Cut, kinds: Collection[str], interaction: str, confidence: float, budget: float | None) -> None:
    """Raises unless a cut can be scored for.

    Args:
        cut: How many units of which kind will go.
        kinds: Which kinds are scored.
        interaction: How.
        confidence: Of each claim.
        budget: Share of the exact evaluations.

    Raises:
        ValueError: If it cannot.
    """
    if set(cut) != set(kinds):
        raise ValueError(
            f"cut must say how many go of each of the kinds that are scored, {sorted(kinds)}; found {dict(cut)}."
        )
    if any(isinstance(value, bool) or value <= 0 or (value > 1 and value != int(value)) for value in cut.values()):
        raise ValueError(f"cut must hold counts, or shares below 1, of more than 0; found {dict(cut)}.")
    if interaction in {"greedy", "joint"} or (interaction == "nested" and "neurons" in kinds):
        raise ValueError(
            f"cut needs units that are scored one at a time; found interaction={interaction!r}, where they depend on each "
            "other. Pass interaction='single', or score without a cut."
        )
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie strictly between 0 and 1; found {confidence}.")
    if budget is not None and not 0 < budget <= 1:
        raise ValueError(f"budget must lie between 0 and 1; found {budget}.")


def cut_scores(
    meter: Meter,
    ranks: Ranks,
    encoder: EncoderCore,
    pairs: Pairs,
    metric: Metric,
    units: Sequence[Unit],
    cut: Cut,
    confidence: float,
    budget: float | None,
    bar: Progress,
) -> list[Score]:
    """Scores with as few evaluations as it takes to tell which units a cut removes.

    Args:
        meter: What measures.
        ranks: Who measures.
        encoder: The dual encoder that it measures.
        pairs: The calibration pairs that it measures on.
        metric: Z.
        units: The units.
        cut: How many of each kind go.
        confidence: Of each claim.
        budget: Share of the exact evaluations to stop at.
        bar: Told of what happens.

    Returns:
        A score per unit, in their order.
    """
    # Rank 0 decides what is evaluated next, so that rounding on different machines cannot part the ranks.
    if ranks.rank:
        while (asked := ranks.first(None)) is not None:
            list(meter.sampled(*asked))
        return list(ranks.first(None))

    index = pairs.image_index.to(next(iter(meter.whole.values())).device)
    scores: dict[Unit, Score] = {}
    for kind in cut:
        mine = {single_ablation(unit): unit for unit in units if unit.kind == kind}

        def evaluate(
            ablations: Sequence[Ablation], rows: Tensor, mine: Mapping[Ablation, Unit] = mine
        ) -> Iterator[tuple[Ablation, Tensor]]:
            ranks.first((list(ablations), rows.cpu()))
            for ablation, embeddings in meter.sampled(ablations, rows.cpu()):
                bar.evaluated(mine[ablation], len(rows))
                yield ablation, embeddings

        remove = cut[kind] if cut[kind] >= 1 else math.ceil(round(cut[kind] * len(mine), 9))
        inputs: dict[TowerName, Tensor] = {"image": pairs.images, "text": pairs.tokens}
        features: dict[Ablation, tuple[Tensor, Tensor]] = {}
        for tower, x in inputs.items():
            features |= ablation_features(encoder, tower, x, [a for a in mine if a.tower == tower])
        found = adaptive_scores(
            evaluate,
            list(mine),
            meter.whole,
            metric,
            index,
            int(remove),
            features=features,
            confidence=confidence,
            budget=budget,
        )
        for one in found:
            unit = mine[one.ablation]
            bar.scored(unit, one.value)
            scores[unit] = _score(one, unit, encoder)
    ranks.first(None)
    return list(ranks.first([scores[unit] for unit in units]))


def _score(found: AdaptiveScore, unit: Unit, encoder: EncoderCore) -> Score:
    return Score(
        unit=unit,
        value=found.value,
        stderr=found.stderr if math.isfinite(found.stderr) else torch.nan,
        loss=found.value,
        parameters=freed_parameters(encoder, unit),
        images=found.queries,
        side=found.side,
        removed=found.removed,
    )
