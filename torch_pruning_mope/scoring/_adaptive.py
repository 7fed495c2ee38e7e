"""Adaptive scoring: spend evaluations where the cut is, and stop where its side is certain.

What is decided is what the exact score table *on the same calibration images* would say, so with all images there is no
uncertainty left. A unit is evaluated on a sample of the images that grows in stages; what the others would lose is predicted
(``_prediction``), and the predictions' errors are estimated (``_sampling``). The first sample is simple random. From its
predictions one can tell which images an ablation is likely to change, mostly few, and those are drawn more often from then on.

Axes: ``U`` ablations, ``I`` images, ``S`` strata.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import NormalDist
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..encoder import TowerName
from ..metrics import Metric
from ._prediction import Features, Predictor
from ._sampling import Sample
from ._units import Ablation

Side = Literal["removed", "kept", "undecided"]
Evaluate = Callable[[Sequence[Ablation], Tensor], Iterator[tuple[Ablation, Tensor]]]
"""From ablations of one tower and rows of its inputs to each ablation's normalised embeddings of these rows."""

_STRATA = 8
"""Strata that the images after the first stage fall into, at most."""
_SHARE = 0.5
"""Of the budget that is left, what one stage may spend; the last may spend all of it."""


@dataclass(frozen=True)
class AdaptiveScore:
    """What is known about one ablation's loss.

    Attributes:
        ablation: The ablation.
        value: The loss, estimated; exact if all images were seen.
        stderr: Standard error against the exact table; 0 if all images were seen.
        queries: Images that it was evaluated on.
        side: ``removed`` or ``kept`` where that is certain at the stated confidence, else ``undecided``.
        removed: The best guess, true for exactly as many as are to be removed.
    """

    ablation: Ablation
    value: float
    stderr: float
    queries: int
    side: Side
    removed: bool


@dataclass
class _State:
    """One ablation under way: its sampled embeddings, its estimate, and the variance of the errors in each stratum."""

    ablation: Ablation
    embeddings: Tensor
    images: int = 0
    value: float = 0.0
    errors: Float[Tensor, "S"] = field(default_factory=lambda: torch.zeros(1))
    variance: float = math.inf
    freedom: float = math.inf
    side: Side = "undecided"


def adaptive_scores(
    evaluate: Evaluate,
    ablations: Sequence[Ablation],
    dense: Mapping[TowerName, Tensor],
    metric: Metric,
    image_index: Int[Tensor, "N"],
    remove: int,
    *,
    features: Features | None = None,
    confidence: float = 0.99,
    budget: float | None = None,
    stages: Sequence[int] = (32, 64, 128, 256, 512),
    seed: int = 0,
) -> list[AdaptiveScore]:
    """Which ablations the exact table would put below the cut, from as few evaluations as that takes.

    Args:
        evaluate: Embeds some inputs under some ablations of one tower; say :meth:`Meter.sampled`.
        ablations: The candidates, each a unit of its own, of either tower.
        dense: Normalised embeddings of the unpruned model.
        metric: Z; it must have per-image shares.
        image_index: The image that each caption describes.
        remove: How many will go: those with the lowest loss, the first of equals.
        features: What is known about each input beforehand; see ``ablation_features``. Good ones save evaluations.
        confidence: Of each single claim that a unit is removed or kept.
        budget: Share of the exact table's evaluations to stop at; None goes on until every unit is decided.
        stages: Images after which to look, ascending; all of them come last by themselves.
        seed: Of the order in which images are drawn.

    Returns:
        One score per ablation, in their order.

    Raises:
        ValueError: If an argument is out of its range.
    """
    count = len(dense["image"])
    stages = [*(stage for stage in stages if stage < count), count]
    _check(len(ablations), remove, confidence, budget, stages)
    predictor = Predictor(dense, metric, image_index, features or {})
    generator = torch.Generator().manual_seed(seed)
    samples = {tower: Sample.simple(count, generator) for tower in dense}
    states = [_State(ablation, dense[ablation.tower][:0]) for ablation in ablations]
    left = math.inf if budget is None else budget * len(states) * count
    # A wrong claim takes one wrong comparison with another unit, at one of the looks.
    level = (1 - confidence) / (len(stages) * (len(states) - 1))
    for look, (before, images) in enumerate(zip([0, *stages], stages, strict=False)):
        open_ = [state for state in states if state.side == "undecided" and state.images == before]
        if look and budget is not None:
            affordable = int(left * (1 if images == count else _SHARE) / (images - before))
            open_ = _nearest(open_, states, remove)[:affordable]
        left -= len(open_) * (images - before)
        _advance(open_, evaluate, predictor, samples, images)
        if look == 0 and images < count:
            for tower, sample in samples.items():
                mine = [state for state in states if state.ablation.tower == tower]
                squares = _spread(mine, predictor, sample, images, generator)
                sample.stratify(squares, images, min(_STRATA, max(1, (stages[1] - images) // 2)))
        _decide(states, remove, level)
    order = sorted(states, key=lambda state: (("removed", "undecided", "kept").index(state.side), state.value))
    gone = {state.ablation for state in order[:remove]}
    undecided = [state for state in states if state.side == "undecided"]
    if all(state.images == count for state in undecided):
        # Their exact values say which of them fill the places that earlier claims have left.
        for state in undecided:
            state.side = "removed" if state.ablation in gone else "kept"
    return [
        AdaptiveScore(s.ablation, s.value, math.sqrt(s.variance), s.images, s.side, s.ablation in gone) for s in states
    ]


def _advance(
    states: Sequence[_State],
    evaluate: Evaluate,
    predictor: Predictor,
    samples: Mapping[TowerName, Sample],
    images: int,
) -> None:
    """Evaluates some ablations of the same stage on the images up to the next, and estimates their losses anew."""
    for tower, sample in samples.items():
        mine = {state.ablation: state for state in states if state.ablation.tower == tower}
        if not mine:
            continue
        new = predictor.rows(tower, sample.order[next(iter(mine.values())).images : images])
        rows = predictor.rows(tower, sample.order[:images])
        for ablation, embeddings in evaluate(list(mine), new):
            state = mine[ablation]
            state.embeddings = torch.cat([state.embeddings, embeddings])
            state.images = images
            _estimate(state, predictor, sample, rows)
        variances = torch.stack([state.errors for state in mine.values()])
        for state in mine.values():
            state.variance, state.freedom = sample.variance(state.errors, variances.mean(0), images)


def _estimate(state: _State, predictor: Predictor, sample: Sample, rows: Int[Tensor, "q"]) -> None:
    """The loss, and the variance of the errors of its prediction within each stratum."""
    if state.images < len(sample.order):
        both = predictor.predict(state.ablation, rows, state.embeddings)
        predicted, found = (predictor.losses(state.ablation, embeddings).cpu() for embeddings in both)
    else:
        exact = torch.empty_like(state.embeddings)
        exact[rows] = state.embeddings
        predicted = found = predictor.losses(state.ablation, exact).cpu()
    state.value, state.errors = sample.estimate(predicted, found, state.images)


def _spread(
    states: Sequence[_State], predictor: Predictor, sample: Sample, pilot: int, generator: torch.Generator
) -> Float[Tensor, "I"]:
    """How far each image's share moves, squared, if predictions err by what they erred by in the pilot; a tower's sum."""
    total = torch.zeros(len(sample.order), dtype=torch.double)
    for state in states:
        rows = predictor.rows(state.ablation.tower, sample.order[:pilot])
        predicted, _ = predictor.predict(state.ablation, rows, state.embeddings)
        errors = state.embeddings - predicted[rows]
        drawn = errors[torch.randint(len(errors), (len(predicted),), generator=generator)]
        moved = predictor.losses(state.ablation, F.normalize(predicted + drawn, dim=-1))
        total += (moved - predictor.losses(state.ablation, predicted)).square().cpu()
    return total


def _nearest(open_: Sequence[_State], states: Sequence[_State], remove: int) -> list[_State]:
    """Those whose side of the cut is least certain first."""
    values = sorted(state.value for state in states)
    cut = (values[remove - 1] + values[remove]) / 2
    return sorted(open_, key=lambda state: abs(state.value - cut) / math.sqrt(state.variance + 1e-30))


def _decide(states: Sequence[_State], remove: int, level: float) -> None:
    """A unit is removed if so many others are surely above it that those to be kept are complete, and the other way round."""
    below = _surely_below(states, level)
    for state, others_above, others_below in zip(states, below.sum(1).tolist(), below.sum(0).tolist(), strict=True):
        if state.side == "undecided" and others_above >= len(states) - remove:
            state.side = "removed"
        elif state.side == "undecided" and others_below >= remove:
            state.side = "kept"


def _surely_below(states: Sequence[_State], level: float) -> Bool[Tensor, "U U"]:
    """Whether the row's loss is certainly less than the column's; between two exact ones, the first of equals is less."""
    values, variances, freedoms = (
        torch.tensor([getattr(state, name) for state in states], dtype=torch.double)
        for name in ("value", "variance", "freedom")
    )
    gaps = values[None, :] - values[:, None]
    variance = variances[None, :] + variances[:, None]
    freedom = variance.square() / (variances.square() / freedoms + (variances.square() / freedoms)[:, None])
    z = -NormalDist().inv_cdf(level)
    # Student's quantile from the normal one (Abramowitz & Stegun 26.7.5).
    quantile = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom.square())
    first = torch.ones(len(states), len(states), dtype=torch.bool).triu(1)
    exact = (variances == 0)[None, :] & (variances == 0)[:, None]
    return torch.where(exact, (gaps > 0) | ((gaps == 0) & first), gaps > quantile * variance.sqrt())


def _check(units: int, remove: int, confidence: float, budget: float | None, stages: Sequence[int]) -> None:
    if not 0 < remove < units:
        raise ValueError(f"remove must be at least 1 and less than the number of ablations, {units}; found {remove}.")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie strictly between 0 and 1; found {confidence}.")
    if min(stages) < 8 or any(a >= b for a, b in pairwise(stages)):
        raise ValueError(f"stages must ascend, from 8 images at least; found {tuple(stages)}.")
    if budget is not None and not stages[0] / stages[-1] <= budget <= 1:
        raise ValueError(
            f"budget must lie between {stages[0] / stages[-1]:.3g}, what the first stage takes, and 1; found {budget}."
        )
