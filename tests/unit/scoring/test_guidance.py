"""The predicted number of separated units comes true."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import torch_pruning_mope as mope
from torch_pruning_mope.scoring import separation
from torch_pruning_mope.towers import Unit


def table(values: torch.Tensor, errors: torch.Tensor, images: int | None) -> mope.ScoreTable:
    scores = tuple(
        mope.scoring.Score(Unit("head", "image", 0, i, (i,)), float(v), float(e), float(v), None, images)
        for i, (v, e) in enumerate(zip(values, errors, strict=True))
    )
    return mope.ScoreTable(scores, 0.5, "recall_mean", "w", "p")


def draw(true: torch.Tensor, noise: float, images: int, generator: torch.Generator) -> mope.ScoreTable:
    """Scores of some images: true values and errors that fall with the root of their number."""
    error = noise / math.sqrt(images)
    return table(true + error * torch.randn(len(true), generator=generator), torch.full_like(true, error), images)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), noise=st.floats(0.5, 20), share=st.floats(0.2, 0.8))
def test_predictions_come_true_on_average(seed: int, noise: float, share: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    true = torch.randn(200, generator=generator, dtype=torch.double)
    remove = round(share * 200)
    found = [separation(draw(true, noise, 250, generator), "head", remove, images=(1000,)) for _ in range(20)]
    later = [separation(draw(true, noise, 1000, generator), "head", remove) for _ in range(20)]
    predicted = sum(s.predicted[1000] for s in found) / 20
    actual = sum(s.separated for s in later) / 20
    assert predicted == pytest.approx(actual, abs=20)  # of 200 units


def test_what_is_separated() -> None:
    values, errors = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0]), torch.full((5,), 0.5)
    found = separation(table(values, errors, 100), "head", 2, images=(100, 10_000), confidence=0.95)
    assert found.separated == 3  # the cut is at 1.5; 1.645 * 0.5 = 0.82
    assert 2 < found.predicted[100] < found.predicted[10_000] <= 5
    assert str(found).startswith("with 100 images, 3 of 5 heads are separated; 100 would separate about ")
    assert str(found).endswith("(cut after 2, 95 % confidence each)")


def test_units_without_any_error_are_separated() -> None:
    found = separation(table(torch.tensor([0.0, 0.0, 1.0]), torch.zeros(3), 50), "head", 2, images=(100,))
    assert found.separated == 3
    assert found.predicted[100] == pytest.approx(3)


@pytest.mark.parametrize(
    ("errors", "images", "arguments", "message"),
    [
        (0.1, 50, {"remove": 0}, "remove must be between 1 and 3, the table's units of 'head'; found 0"),
        (0.1, 50, {"remove": 4}, "remove must be between 1 and 3"),
        (0.1, 50, {"remove": 1, "confidence": 1.0}, "confidence must be between 0.5 and 1; found 1.0"),
        (math.nan, 50, {"remove": 1}, "table must hold standard errors"),
        (0.1, None, {"remove": 1}, "table must hold standard errors and numbers of images"),
    ],
)
def test_refusals(errors: float, images: int | None, arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        separation(table(torch.arange(4.0), torch.full((4,), errors), images), "head", **arguments)  # type: ignore[arg-type]


def test_the_pilot_uses_few_images(encoder: mope.DualEncoder, pairs: mope.Pairs) -> None:
    found = mope.calibration_guidance(encoder, pairs, "head", 3, pilot=5, metric="contrastive_loss", progress=False)
    assert found.images == 5
    assert list(found.predicted) == [1000, 4000]
    with pytest.raises(ValueError, match="pilot must be at least 2 images; found 1"):
        mope.calibration_guidance(encoder, pairs, "head", 3, pilot=1)
