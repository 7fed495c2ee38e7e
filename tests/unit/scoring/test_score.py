"""Scores: one number by three roads, their standard errors, and what else a score table is made of."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torch_pruning as tp
from torch import Tensor

import torch_pruning_mope as mope
from tests.asserts import unchanged, unchecked
from tests.unit.models import clip, pairs_for
from tests.unit.scoring.oracle import embeddings, nested_scores, physically_without
from torch_pruning_mope.scoring import Ablation, neuron_orders

KINDS = ("head", "neurons", "block")


def _metric(name: str, encoder: mope.DualEncoder) -> mope.metrics.Metric:
    return (
        mope.metrics.Recall()
        if name == "recall_mean"
        else mope.metrics.ContrastiveLoss(torch.as_tensor(encoder.logit_scale).item())
    )


def _shares(metric: mope.metrics.Metric, encoder: mope.DualEncoder, pairs: mope.Pairs) -> Tensor:
    image, text = (
        F.normalize(embeddings(encoder, tower, inputs), dim=-1)
        for tower, inputs in (("image", pairs.images), ("text", pairs.tokens))
    )
    shares = metric.per_image(image[None], text[None], pairs.image_index)
    assert shares is not None
    return shares[0].double()


def test_single_scores_and_errors_equal_physical_removal() -> None:
    encoder = mope.DualEncoder(clip())
    pairs = pairs_for(encoder.model, 13, captions=2)
    smaller: dict[Any, mope.DualEncoder] = {}
    for metric, engine in itertools.product(("recall_mean", "contrastive_loss"), ("prefix", "plain")):
        with unchanged(encoder.model):
            table = mope.score(
                encoder,
                pairs,
                metric=metric,
                kinds=KINDS,
                groups=3,
                interaction="single",
                engine=engine,
                progress=False,
            )
        tolerance = 1e-12 if metric == "recall_mean" else 1e-5
        measure = _metric(metric, encoder)
        dense = _shares(measure, encoder, pairs)
        assert table.dense == pytest.approx(float(dense.mean()), abs=tolerance)
        assert len(table.scores) == 3 * (4 + 3 + 1) + 2 * (3 + 3 + 1)
        for score in table.scores:
            if score.unit not in smaller:
                smaller[score.unit] = physically_without(encoder, score.unit)
            lost = dense - _shares(measure, smaller[score.unit], pairs)
            assert score.value == pytest.approx(float(lost.mean()), abs=tolerance)
            assert score.loss == score.value
            assert score.stderr == pytest.approx(float(lost.std()) / math.sqrt(13), abs=10 * tolerance)


def test_nested_scores_equal_physical_removal_of_nests() -> None:
    encoder = mope.DualEncoder(clip())
    pairs = pairs_for(encoder.model, 11)
    options: dict[str, Any] = {"metric": "contrastive_loss", "kinds": ["neurons"], "groups": 4, "progress": False}
    tables = [mope.score(encoder, pairs, engine=engine, **options) for engine in ("prefix", "plain")]
    measure = _metric("contrastive_loss", encoder)
    dense = float(_shares(measure, encoder, pairs).mean())
    for layer in encoder.layers:
        losses: list[float] = []
        channels: tuple[int, ...] = ()
        for score in tables[0].of("neurons", layer.tower, layer.index):
            channels += score.unit.channels
            smaller = physically_without(encoder, Ablation(score.unit.tower, layer.index, "neurons", channels))
            losses.append(dense - float(_shares(measure, smaller, pairs).mean()))
        assert sorted(channels) == list(range(layer.block.feed_forward.num_units))
        expected = nested_scores(torch.tensor(losses, dtype=torch.double))
        for table in tables:
            scores = table.of("neurons", layer.tower, layer.index)
            assert [score.loss for score in scores] == pytest.approx(losses, abs=1e-5)
            assert [score.value for score in scores] == pytest.approx(expected.tolist(), abs=1e-5)


def test_standard_errors_agree_with_a_bootstrap_over_images() -> None:
    """Independent of the formula: resample images, keep each one's share. A wrong pairing would be far larger."""
    encoder = mope.DualEncoder(clip())
    pairs = pairs_for(encoder.model, 60)
    metric = mope.metrics.Recall((1, 5))
    table = mope.score(encoder, pairs, metric=metric, kinds=["head"], towers=["image"], progress=False)
    dense = _shares(metric, encoder, pairs)
    generator = np.random.default_rng(0)
    for score in table.scores[:5]:
        lost = (dense - _shares(metric, physically_without(encoder, score.unit), pairs)).numpy()
        means = [lost[generator.integers(0, 60, 60)].mean() for _ in range(2000)]
        assert score.stderr == pytest.approx(np.std(means), rel=0.1)


@pytest.mark.parametrize("batch_size", [1, 5, 1000])
def test_batch_size_does_not_change_recall(encoder: mope.DualEncoder, pairs: mope.Pairs, batch_size: int) -> None:
    def scores(size: int) -> list[float]:
        table = mope.score(encoder, pairs, metric="recall_mean", kinds=KINDS, groups=3, batch_size=size, progress=False)
        return [score.value for score in table.scores]

    assert scores(batch_size) == scores(7)


def test_any_iterable_of_batches_is_pairs(encoder: mope.DualEncoder, pairs: mope.Pairs) -> None:
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(pairs.images, pairs.tokens), batch_size=5)
    assert mope.score(encoder, loader, groups=2, progress=False) == mope.score(encoder, pairs, groups=2, progress=False)


def test_a_callable_metric_sees_each_ablation(encoder: mope.DualEncoder, pairs: mope.Pairs) -> None:
    def alignment(images: Tensor, texts: Tensor) -> float:
        return float((images * texts).sum(-1).mean())

    table = mope.score(encoder, pairs, metric=alignment, kinds=["head"], progress=False)
    assert table.metric.endswith("alignment")
    assert all(math.isnan(score.stderr) for score in table.scores)

    def value(model: mope.DualEncoder) -> float:
        image, text = embeddings(model, "image", pairs.images), embeddings(model, "text", pairs.tokens)
        return float(F.cosine_similarity(image, text).mean())

    for score in table.scores[::3]:
        assert score.value == pytest.approx(value(encoder) - value(physically_without(encoder, score.unit)), abs=1e-6)


def test_towers_and_kinds_are_chosen(encoder: mope.DualEncoder, pairs: mope.Pairs) -> None:
    table = mope.score(encoder, pairs, kinds=["block"], towers=["text"], progress=False)
    assert [(s.unit.kind, s.unit.tower, s.unit.layer) for s in table.scores] == [
        ("block", "text", 0),
        ("block", "text", 1),
    ]


@pytest.mark.parametrize("groups", [1, 7, 16, 56, 1000])
def test_groups_differ_in_size_by_one_at_most(encoder: mope.DualEncoder, pairs: mope.Pairs, groups: int) -> None:
    table = mope.score(encoder, pairs, kinds=["neurons"], towers=["image"], groups=groups, progress=False)
    for layer in range(3):
        sizes = [len(score.unit.channels) for score in table.of("neurons", "image", layer)]
        assert len(sizes) == min(groups, 56)
        assert sum(sizes) == 56
        assert max(sizes) - min(sizes) <= 1


class _Counting(tp.importance.RandomImportance):  # type: ignore[misc]
    calls = 0

    def __call__(self, group: Any) -> Any:
        type(self).calls += 1
        return torch.arange(len(group[0].idxs)).flip(0).float()


def test_rewiring_orders_neurons(encoder: mope.DualEncoder, pairs: mope.Pairs) -> None:
    def order(rewire: Any) -> list[int]:
        table = mope.score(encoder, pairs, kinds=["neurons"], groups=8, rewire=rewire, progress=False)
        return [channel for score in table.of("neurons", "text", 1) for channel in score.unit.channels]

    assert order("none") == list(range(54))
    assert order(_Counting()) == list(range(54))[::-1]
    assert _Counting.calls == 5
    encoder.accumulate_gradients(pairs)
    mlp = encoder.text.blocks[1].module.mlp
    salience = (
        sum(
            (p * p.grad).abs().sum(dim)  # type: ignore[operator]
            for p, dim in ((mlp.c_fc.weight, 1), (mlp.c_fc.bias, ()), (mlp.c_proj.weight, 0))  # type: ignore[union-attr]
            if dim != ()
        )
        + (mlp.c_fc.bias * mlp.c_fc.bias.grad).abs()
    )  # type: ignore[union-attr]
    assert isinstance(salience, Tensor)
    assert order("taylor") == salience.argsort(stable=True).tolist()


@pytest.mark.parametrize("criterion", [tp.importance.GroupTaylorImportance, tp.importance.GroupHessianImportance])
def test_rewiring_by_gradients_leaves_the_users_gradients(
    encoder: mope.DualEncoder, pairs: mope.Pairs, criterion: Any
) -> None:
    for parameter in encoder.model.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    with unchanged(encoder.model):
        table = mope.score(encoder, pairs, kinds=["neurons"], groups=4, rewire=criterion(), progress=False)
    assert f".{criterion.__name__}(" in table.settings["rewire"]


@pytest.mark.parametrize(
    ("rewire", "match"),
    [
        ("tayler", "rewire must be 'taylor', 'none', 'obs' or a Torch-Pruning importance; found 'tayler'"),
        (lambda group: None, "rewire must score each neuron of image layer 0; found None"),
        (lambda group: torch.ones(3), "rewire must score each neuron of image layer 0"),
        (lambda group: torch.full((len(group[0].idxs),), torch.nan), "rewire must yield finite scores"),
    ],
)
def test_unusable_rewirings_are_refused(encoder: mope.DualEncoder, pairs: mope.Pairs, rewire: Any, match: str) -> None:
    with unchanged(encoder.model), pytest.raises(ValueError, match=match):
        unchecked(neuron_orders)(encoder, pairs, rewire)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"kinds": ["heads"]}, "kinds must be some of"),
        ({"kinds": "head"}, "kinds must be some of"),
        ({"kinds": []}, "kinds must be some of"),
        ({"towers": ["vision"]}, r"towers must be \('image',\), \('text',\) or both"),
        ({"towers": []}, "towers must be"),
        ({"groups": 0}, "groups must be at least 1; found 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, or None; found 0"),
        ({"interaction": "pairs"}, "interaction must be one of"),
        ({"engine": "fast"}, "engine must be one of"),
    ],
)
def test_unknown_options_are_refused(
    encoder: mope.DualEncoder, pairs: mope.Pairs, arguments: dict[str, Any], match: str
) -> None:
    # Option strings are Literals, which the run-time type check of the tests would refuse first.
    with unchanged(encoder.model), pytest.raises(Exception, match=match):
        unchecked(mope.score)(encoder, pairs, progress=False, **arguments)
