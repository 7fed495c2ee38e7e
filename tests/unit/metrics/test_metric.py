"""Names, callables, and embeddings that are no numbers."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from torch_pruning_mope.errors import MetricError, NonFiniteError
from torch_pruning_mope.metrics import ContrastiveLoss, Metric, Recall, normalised, resolve_metric


@pytest.mark.parametrize(
    ("name", "ks", "directions"),
    [
        ("recall_mean", (1, 5, 10), ("i2t", "t2i")),
        ("recall@1", (1,), ("i2t", "t2i")),
        ("recall@25:i2t", (25,), ("i2t",)),
        ("recall@3:t2i", (3,), ("t2i",)),
    ],
)
def test_names_of_recall(name: str, ks: tuple[int, ...], directions: tuple[str, ...]) -> None:
    metric = resolve_metric(name)
    assert isinstance(metric, Recall)
    assert (metric.ks, metric.directions, metric.name) == (ks, directions, name)


def test_the_contrastive_loss_takes_the_models_temperature() -> None:
    metric = resolve_metric("contrastive_loss", 7.0)
    assert isinstance(metric, ContrastiveLoss)
    assert metric.logit_scale == 7.0


def test_a_metric_stays_itself() -> None:
    metric = Recall((2,))
    assert resolve_metric(metric) is metric


@pytest.mark.parametrize("metric", ["recall", "recall@0", "recall@1:both", "Recall_mean", 3, None, ["recall_mean"], ""])
def test_anything_else_is_refused(metric: object) -> None:
    with pytest.raises(MetricError, match=r"metric must be 'recall_mean', .* or a callable"):
        resolve_metric(metric)


def test_a_callable_sees_normalised_embeddings_of_each_ablation() -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def metric(images: Tensor, texts: Tensor) -> float:
        seen.append((images, texts))
        return float(images.sum())

    images, texts = torch.randn(3, 4, 5), torch.randn(1, 6, 5)
    values = resolve_metric(metric).values(images, texts, torch.zeros(6, dtype=torch.long))
    assert values == [float(image.sum()) for image in images]
    assert [(i.shape, t.shape) for i, t in seen] == [((4, 5), (6, 5))] * 3
    seen.clear()
    resolve_metric(metric)(images[0] * 9, texts[0, :4] * 9)
    assert torch.allclose(seen[0][0].norm(dim=-1), torch.ones(4))
    assert torch.allclose(seen[0][1].norm(dim=-1), torch.ones(4))


@pytest.mark.parametrize(
    ("result", "match"),
    [
        (torch.tensor(0.5), r"must return a float; found a tensor of shape \(\)\. Return \.item\(\)"),
        (torch.ones(3), r"found a tensor of shape \(3,\)"),
        (math.nan, "must return a finite number; found nan"),
        (-math.inf, "must return a finite number; found -inf"),
        ("0.5", "must return a float; found str"),
        (None, "must return a float; found NoneType"),
        (True, "must return a float; found bool"),
        (1 + 2j, "must return a float; found complex"),
    ],
)
def test_callables_that_return_no_number_are_refused(result: Any, match: str) -> None:
    with pytest.raises(MetricError, match=match):
        resolve_metric(lambda images, texts: result)(torch.randn(3, 2), torch.randn(3, 2))


def test_integers_are_numbers() -> None:
    assert resolve_metric(lambda images, texts: 1)(torch.randn(3, 2), torch.randn(3, 2)) == 1.0


@pytest.mark.parametrize("metric", ["recall_mean", "contrastive_loss"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("side", ["image", "text"])
def test_embeddings_that_are_no_numbers_are_refused(metric: str, bad: float, side: str) -> None:
    images, texts = torch.randn(4, 3), torch.randn(4, 3)
    (images if side == "image" else texts)[2, 1] = bad
    with pytest.raises(NonFiniteError, match=f"{side} embeddings must be finite; found NaN or infinity in 1 of 4"):
        resolve_metric(metric)(images, texts)


def test_unequal_numbers_need_an_index() -> None:
    with pytest.raises(ValueError, match=r"image_index is required when images \(3\) and captions \(6\) differ"):
        Recall()(torch.randn(3, 2), torch.randn(6, 2))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64,) * 2,
    ],
)
def test_normalised_in_float32_at_least(given: torch.dtype, expected: torch.dtype) -> None:
    result = normalised(torch.randn(2, 3, 4).to(given), "image")
    assert result.dtype == expected
    assert torch.allclose(result.norm(dim=-1), torch.ones(2, 3, dtype=expected))


def test_a_zero_embedding_stays_finite() -> None:
    assert torch.equal(normalised(torch.zeros(2, 3), "image"), torch.zeros(2, 3))


def test_a_metric_of_ones_own(encoder: Any, pairs: Any) -> None:
    """The abstract class is a contract that a user can fill."""
    import torch_pruning_mope as mope

    class FirstImage(Metric):
        name = "first image"

        def per_image(self, images: Tensor, texts: Tensor, image_index: Tensor) -> None:
            return None

        def values(self, images: Tensor, texts: Tensor, image_index: Tensor) -> list[float]:
            return [float(image[0, 0]) for image in images.expand(max(len(images), len(texts)), -1, -1)]

    table = mope.score(encoder, pairs, metric=FirstImage(), towers=("image",), kinds=("head",), progress=False)
    with torch.no_grad():
        expected = torch.nn.functional.normalize(encoder.embed("image", pairs.images), dim=-1)[0, 0]
    assert table.dense == pytest.approx(float(expected), abs=1e-6)
    assert all(math.isnan(score.stderr) for score in table.scores)
