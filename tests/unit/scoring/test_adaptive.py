"""Adaptive scores against the exact ones, and their claims against their confidence."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Float, Int
from torch import Tensor

import torch_pruning_mope as mope
from tests.asserts import assert_close
from torch_pruning_mope import DualEncoder, Pairs
from torch_pruning_mope.metrics import FunctionMetric, normalised
from torch_pruning_mope.metrics._metric import PerImageMetric
from torch_pruning_mope.scoring import Ablation, Meter, PrefixEngine, enumerate_units, single_ablation
from torch_pruning_mope.scoring._adaptive import AdaptiveScore, adaptive_scores
from torch_pruning_mope.scoring._prediction import Predictor, ablation_features, regress
from torch_pruning_mope.scoring._sampling import Sample

from ..models import clip, pairs_for


class Height(PerImageMetric):
    """An image's share is how far its embedding points up: any shares at all can be made of embeddings."""

    name = "height"

    def per_image(
        self, images: Float[Tensor, "#K I J"], texts: Float[Tensor, "#K N J"], image_index: Int[Tensor, "N"]
    ) -> Float[Tensor, "K I"]:
        return images[..., 1]


def at_height(heights: Tensor) -> Tensor:
    """Unit vectors of these heights."""
    return torch.stack([(1 - heights.square()).sqrt(), heights], -1)


class Synthetic:
    """Ablations of the image tower with given losses ``[U, I]``."""

    def __init__(self, losses: Tensor) -> None:
        self.losses = losses.double()
        self.ablations = [Ablation("image", 0, "head", (unit,)) for unit in range(len(losses))]
        dense = at_height(torch.zeros(losses.shape[1], dtype=torch.double))
        self.dense: dict[Any, Tensor] = {"image": dense, "text": dense}
        self.seen = torch.zeros(losses.shape, dtype=torch.long)

    def evaluate(self, ablations: Sequence[Ablation], rows: Tensor) -> Iterator[tuple[Ablation, Tensor]]:
        for ablation in ablations:
            unit = ablation.channels[0]
            self.seen[unit, rows] += 1
            yield ablation, at_height(-self.losses[unit, rows])

    def scores(self, remove: int, **options: Any) -> list[AdaptiveScore]:
        index = torch.arange(self.losses.shape[1])
        return adaptive_scores(self.evaluate, self.ablations, self.dense, Height(), index, remove, **options)

    def gone(self, remove: int) -> set[int]:
        """What the exact table removes."""
        return set(self.losses.mean(1).argsort(stable=True)[:remove].tolist())


def population(seed: int, units: int = 10, images: int = 240) -> Synthetic:
    """Like a recall's: most shares do not change, some by a step; a few images are hard under every ablation."""
    generator = torch.Generator().manual_seed(seed)
    rate = torch.rand(units, 1, generator=generator).sort(0).values
    rate[units // 2 :] += 0.3
    hard = torch.rand(images, generator=generator)
    flips = torch.rand(units, images, generator=generator) < rate * hard
    sign = torch.where(torch.rand(units, images, generator=generator) < 0.9, 1.0, -1.0)
    return Synthetic(flips * sign * 0.25)


STAGES = (16, 32, 64, 128)


@pytest.mark.parametrize(("confidence", "budget"), [(0.99, None), (0.99, 0.5), (0.8, None)])
def test_claims_hold_as_often_as_they_say(confidence: float, budget: float | None) -> None:
    """Claims that were made before all images were seen."""
    claims = []
    for seed in range(80):
        case = population(seed)
        gone = case.gone(4)
        scores = case.scores(4, stages=STAGES, seed=seed, budget=budget, confidence=confidence)
        claims += [
            (score.side == "removed") == (unit in gone)
            for unit, score in enumerate(scores)
            if score.side != "undecided" and score.queries < 240
        ]
    assert len(claims) > 100
    assert claims.count(False) <= (1 - confidence) * len(claims)


def test_estimates_are_centred_and_as_uncertain_as_they_say() -> None:
    deviations = []
    for seed in range(150):
        case = population(seed, units=4)
        for unit, score in enumerate(case.scores(2, stages=(16, 64), budget=0.3, seed=seed)):
            if 16 < score.queries < 240:
                deviations.append((score.value - float(case.losses[unit].mean())) / score.stderr)
    z = torch.tensor(deviations)
    assert len(z) > 100
    assert abs(float(z.mean())) < 4 / len(z) ** 0.5
    assert 0.7 < float(z.square().mean().sqrt()) < 1.3


@settings(max_examples=40, deadline=None)
@given(
    losses=st.lists(st.integers(-2, 2), min_size=4 * 20, max_size=4 * 20),
    remove=st.integers(1, 3),
    stages=st.sampled_from([(8,), (8, 12), (8, 16), ()]),
)
def test_what_all_images_were_seen_of_is_exact(losses: list[int], remove: int, stages: tuple[int, ...]) -> None:
    """Ties and all: the first of equals goes."""
    case = Synthetic(torch.tensor(losses).view(4, 20) / 8)
    scores = case.scores(remove, stages=stages)
    assert sum(score.removed for score in scores) == remove
    assert all(score.side != "undecided" for score in scores)
    for score, exact in zip(scores, case.losses.mean(1).tolist(), strict=True):
        if score.queries == 20:
            assert score.value == pytest.approx(exact, abs=1e-12)
            assert score.stderr == 0
    if all(score.queries == 20 for score in scores):
        assert {unit for unit, score in enumerate(scores) if score.removed} == case.gone(remove)


def test_a_sample_in_which_nothing_varies_proves_nothing() -> None:
    """Each of three units loses something on one image only, and none of these is in the first sample."""
    last = Sample.simple(100, torch.Generator().manual_seed(0)).order[-3:]
    losses = torch.zeros(3, 100)
    losses[[0, 1, 2], last] = torch.tensor([0.3, 0.2, 0.1])
    scores = Synthetic(losses).scores(1, stages=(16,), seed=0)
    assert [score.side for score in scores] == ["kept", "kept", "removed"]
    scores = Synthetic(losses).scores(1, stages=(16,), seed=0, budget=0.2)
    assert {score.side for score in scores} == {"undecided"}
    assert {score.stderr for score in scores} == {float("inf")}


def test_no_image_is_seen_twice_and_the_budget_holds() -> None:
    for budget in (0.1, 0.25, 0.5, None):
        case = population(3)
        scores = case.scores(4, stages=STAGES, budget=budget)
        assert case.seen.max() == 1
        assert case.seen.sum(1).tolist() == [score.queries for score in scores]
        assert float(case.seen.double().mean()) <= (budget or 1)
        assert sum(score.removed for score in scores) == 4
        assert not any(score.removed != (score.side == "removed") for score in scores if score.side != "undecided")


def test_obvious_units_are_decided_early() -> None:
    generator = torch.Generator().manual_seed(0)
    means = torch.tensor([0.0, 0.01, 0.2, 0.21, 0.4, 0.4])[:, None]
    case = Synthetic(means + 0.01 * torch.randn(6, 400, generator=generator))
    scores = case.scores(2)
    assert [score.side for score in scores] == ["removed"] * 2 + ["kept"] * 4
    assert max(score.queries for score in scores) <= 64


def _setup(encoder: DualEncoder, pairs: Pairs) -> tuple[list[Ablation], dict[Any, Tensor], dict[Ablation, Any]]:
    inputs: dict[Any, Tensor] = {"image": pairs.images, "text": pairs.tokens}
    units = enumerate_units(encoder, ("head", "neurons", "block"), {}, 2, ("image", "text"))
    ablations = [single_ablation(unit) for unit in units]
    dense = {name: normalised(PrefixEngine(encoder).embeddings(name, x), name) for name, x in inputs.items()}
    features: dict[Ablation, Any] = {}
    for name, x in inputs.items():
        features |= ablation_features(encoder, name, x, [a for a in ablations if a.tower == name], 7)
    return ablations, dense, features


@pytest.mark.parametrize("metric", ["recall_mean", "contrastive_loss"])
def test_with_all_images_the_engine_gives_the_exact_table(encoder: DualEncoder, metric: str) -> None:
    """Two captions per image for some, and embeddings put together from two stages."""
    few = pairs_for(encoder.model, 20)
    pairs = Pairs(few.images[:14], few.tokens, torch.tensor([3, 1, 0, 1, *range(2, 14), 13, 5, 5, 0]))
    table = mope.score(
        encoder,
        pairs,
        metric=metric,
        kinds=("head", "neurons", "block"),
        groups=2,
        interaction="single",
        rewire="none",
        progress=False,
    )
    ablations, dense, features = _setup(encoder, pairs)
    scale = float(torch.as_tensor(encoder.logit_scale).detach())
    scores = adaptive_scores(
        Meter(PrefixEngine(encoder, batch_size=7), pairs, mope.Recall()).sampled,
        ablations,
        dense,
        mope.metrics.resolve_metric(metric, scale),
        pairs.image_index,
        5,
        features=features,
        stages=(8,),
        confidence=1 - 1e-15,
    )
    exact = {single_ablation(score.unit): score.value for score in table.scores}
    assert all(score.queries == 14 for score in scores)
    for score in scores:
        assert score.value == pytest.approx(exact[score.ablation], abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["recall_mean", "contrastive_loss"])
def test_on_the_tiny_clip_a_quarter_of_the_evaluations_finds_nearly_the_exact_set(metric: str) -> None:
    encoder = DualEncoder(mope.load_tiny_clip())
    pairs = mope.emoji_pairs("calibration", 400, seed=7)
    exact = mope.score(encoder, pairs, metric=metric, kinds=("head",), progress=False).scores
    order = sorted(range(len(exact)), key=lambda unit: exact[unit].value)
    inputs: dict[Any, Tensor] = {"image": pairs.images, "text": pairs.tokens}
    ablations = [single_ablation(score.unit) for score in exact]
    dense = {name: normalised(PrefixEngine(encoder).embeddings(name, x), name) for name, x in inputs.items()}
    features: dict[Ablation, Any] = {}
    for name, x in inputs.items():
        features |= ablation_features(encoder, name, x, [a for a in ablations if a.tower == name])
    scale = float(torch.as_tensor(encoder.logit_scale).detach())
    scores = adaptive_scores(
        Meter(PrefixEngine(encoder), pairs, mope.Recall()).sampled,
        ablations,
        dense,
        mope.metrics.resolve_metric(metric, scale),
        pairs.image_index,
        16,
        features=features,
        budget=0.25,
    )
    removed = {unit for unit, score in enumerate(scores) if score.removed}
    assert sum(score.queries for score in scores) <= 0.25 * len(scores) * 400
    assert len(removed - set(order[:16])) <= 4
    claims = {unit: score.side == "removed" for unit, score in enumerate(scores) if score.side != "undecided"}
    assert claims == {unit: unit in order[:16] for unit in claims}


def test_features_are_what_a_unit_puts_out(encoder: DualEncoder, pairs: Pairs) -> None:
    """At the pooled token, against a hook on the out-projection of the plain model."""
    for tower, inputs in (("image", pairs.images), ("text", pairs.tokens)):
        ablation = Ablation(tower, 1, "neurons", (2, 5))  # type: ignore[arg-type]
        sublayer = encoder.towers[tower].blocks[1].feed_forward
        seen: list[Tensor] = []
        handle = sublayer.output.register_forward_hook(lambda _, arguments, __, seen=seen: seen.append(arguments[0]))
        encode = encoder.model.encode_image if tower == "image" else encoder.model.encode_text
        with torch.no_grad():
            encode(inputs)  # type: ignore[operator]
        handle.remove()
        pooled = torch.zeros(len(inputs), dtype=torch.long) if tower == "image" else inputs.argmax(1)
        hidden = seen[0].view(len(inputs), -1, seen[0].shape[-1])
        found, mean = ablation_features(encoder, tower, inputs, [ablation], 5)[ablation]  # type: ignore[arg-type]
        assert_close(found, hidden[torch.arange(len(inputs)), pooled][:, [2, 5]], 1e-5)
        lengths = torch.full_like(pooled, hidden.shape[1]) if tower == "image" else pooled + 1
        expected = torch.stack([h[:n, [2, 5]].mean(0) for h, n in zip(hidden, lengths.tolist(), strict=True)])
        assert_close(mean, expected, 1e-5)


def test_predictions_of_sampled_rows_leave_their_image_out() -> None:
    """Against refitting without them, with the same kernel."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(9, 3, generator=generator, dtype=torch.double)
    sampled, owners = torch.tensor([4, 0, 7, 2, 5, 8]), torch.tensor([1, 0, 1, 2, 3, 3])
    targets = torch.randn(6, 2, generator=generator, dtype=torch.double)
    found = regress(inputs, sampled, targets, owners)
    squared = torch.cdist(inputs, inputs[sampled]).square()
    kernel = torch.exp(-squared / (2 * squared.median())) + 1
    for row, owner in zip(range(6), owners.tolist(), strict=True):
        rest = owners != owner
        gram = kernel[sampled[rest]][:, rest] + 0.03 * torch.eye(int(rest.sum()))
        expected = kernel[sampled[row], rest] @ torch.linalg.solve(gram, targets[rest])
        assert_close(found[sampled[row]], expected, 1e-8)
    gram = kernel[sampled] + 0.03 * torch.eye(6)
    assert_close(found[[1, 3, 6]], kernel[[1, 3, 6]] @ torch.linalg.solve(gram, targets), 1e-8)


def test_a_map_that_the_features_tell_is_predicted() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(200, 3, generator=generator)
    targets = features @ torch.randn(3, 5, generator=generator)
    sampled = torch.arange(80)
    errors = (regress(features, sampled, targets[:80], sampled) - targets).square().mean(0) / targets.var(0)
    assert float(errors.max()) < 0.15


def test_rows_of_images_are_their_captions() -> None:
    index = torch.tensor([2, 0, 1, 2, 0])
    dense: dict[Any, Tensor] = {
        "image": F.normalize(torch.ones(3, 2), dim=-1),
        "text": F.normalize(torch.ones(5, 2), dim=-1),
    }
    predictor = Predictor(dense, Height(), index, {})
    assert predictor.rows("text", torch.tensor([2, 1])).tolist() == [0, 3, 2]
    assert predictor.rows("image", torch.tensor([2, 1])).tolist() == [2, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"remove": 0}, "remove must be at least 1 and less than the number of ablations, 10; found 0"),
        ({"remove": 10}, "found 10"),
        ({"confidence": 1.0}, "confidence must lie strictly between 0 and 1; found 1.0"),
        ({"budget": 0.01}, "budget must lie between 0.0667, what the first stage takes, and 1; found 0.01"),
        ({"budget": 1.5}, "found 1.5"),
        ({"stages": (4, 16)}, "stages must ascend, from 8 images at least"),
        ({"stages": (32, 16)}, "stages must ascend"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        population(0).scores(**{"remove": 4, "stages": STAGES} | options)


def test_a_metric_without_shares_is_refused() -> None:
    case = population(0)
    with pytest.raises(mope.MetricError, match="must have per-image shares"):
        adaptive_scores(
            case.evaluate, case.ablations, case.dense, FunctionMetric(lambda a, b: 0.0), torch.arange(240), 3
        )


def test_the_model_is_left_alone() -> None:
    model = clip()
    encoder = DualEncoder(model)
    pairs = pairs_for(encoder.model, 12)
    before = {name: tensor.clone() for name, tensor in encoder.model.state_dict().items()}
    encoder.model.train()
    _setup(encoder, pairs)
    assert encoder.model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.model.state_dict().items())
