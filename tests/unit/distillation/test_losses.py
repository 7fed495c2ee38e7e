"""Each loss against golden values, loops from its definition, open_clip's losses, and numerical gradients."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss, DistillClipLoss, SigLipLoss
from torch import Tensor

from tests.asserts import assert_close
from torch_pruning_mope.metrics import contrastive_losses

from . import reference
from .terms import features, hidden, info_nce, sigmoid, similarity

OWNERS = pytest.mark.parametrize("owner", [[0, 1, 2], [2, 0, 1], [0, 2, 1, 0, 2, 2], [1, 1]], ids=str)


def rows(count: int, width: int = 6) -> Tensor:
    return torch.randn(count, width, dtype=torch.float64)


def unit(embeddings: Tensor) -> Tensor:
    return F.normalize(embeddings, dim=-1)


def example() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Two images, two captions, of a student and a teacher, at angles of 0, 60, 90 and 120 degrees."""
    half = math.sqrt(3) / 2
    return (
        torch.tensor([[1.0, 0.0], [0.0, 2.0]]),
        torch.tensor([[0.5, half], [0.0, 1.0]]),
        torch.tensor([[3.0, 0.0], [0.0, 1.0]]),
        torch.tensor([[1.0, 0.0], [0.0, 1.0]]),
    )


def test_golden_values() -> None:
    """Worked out by hand: the student's cosines are [[1/2, 0], [√3/2, 1]], the teacher's are the identity."""
    images, texts, teacher_images, teacher_texts = example()
    half = math.sqrt(3) / 2

    def softplus(x: float) -> float:
        return math.log1p(math.exp(x))

    expected = (softplus(-1) + softplus(2 * half - 2) + softplus(2 * half - 1) + softplus(-2)) / 4
    assert info_nce(images, texts, 2.0).item() == pytest.approx(expected, rel=1e-6)
    assert expected == pytest.approx(0.533256, abs=1e-6)
    expected = (softplus(0) + softplus(-1) + softplus(2 * half - 1) + softplus(-1)) / 2
    assert sigmoid(images, texts, 2.0, -1.0).item() == pytest.approx(expected, rel=1e-6)
    assert expected == pytest.approx(1.222193, abs=1e-6)
    # A soft target is p = e / (e + 1) of the right one: cross-entropy is softplus(-d) + (1 - p) d at a margin d.
    wrong = 1 / (math.e + 1)
    margins = [1, 2 - 2 * half, 1 - 2 * half, 2]
    expected = sum(softplus(-d) + wrong * d for d in margins) / 4
    found = similarity(images, texts, 2.0, teacher_images, teacher_texts, 1.0).item()
    assert found == pytest.approx(expected, rel=1e-6)
    assert expected == pytest.approx(0.703758, abs=1e-6)
    # Only the first caption is off, by 60 degrees: a squared distance of 1, of 2 captions and 2 dimensions, of 2 towers.
    assert features(images, texts, teacher_images, teacher_texts).item() == pytest.approx(1 / 8, rel=1e-6)
    student = {"image": {0: torch.zeros(1, 2, 2), 3: torch.ones(1, 2, 2)}, "text": {1: torch.zeros(1, 1, 2)}}
    teacher = {"image": {i: torch.full((1, 2, 2), 2.0) for i in range(4)}, "text": {1: torch.tensor([[[0.0, 4.0]]])}}
    assert hidden(student, teacher).item() == pytest.approx((4 + 1 + 8) / 2)


@OWNERS
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_follow_their_definitions(owner: list[int], scale: float) -> None:
    images, texts, index = rows(3), rows(len(owner)), torch.tensor(owner)
    teacher_images, teacher_texts = rows(3, 4), rows(len(owner), 4)
    assert info_nce(images, texts, scale, index).item() == pytest.approx(
        reference.info_nce(images, texts, scale, owner), rel=1e-12
    )
    assert sigmoid(images, texts, scale, -3.0, index).item() == pytest.approx(
        reference.sigmoid(images, texts, scale, -3.0, owner), rel=1e-12
    )
    found = similarity(images, texts, scale, teacher_images, teacher_texts, 5.0).item()
    assert found == pytest.approx(
        reference.similarity((images, texts, scale), (teacher_images, teacher_texts, 5.0)), rel=1e-12
    )
    found = features(images, texts, images + 0.1, -texts).item()
    assert found == pytest.approx(reference.features(images, texts, images + 0.1, -texts), rel=1e-12)
    student = {"image": {1: rows(3, 8).view(3, 2, 4)}, "text": {0: rows(2, 5)[None], 4: rows(2, 5)[None]}}
    teacher = {t: {i: x + torch.randn_like(x) for i, x in blocks.items()} for t, blocks in student.items()}
    assert hidden(student, teacher).item() == pytest.approx(reference.hidden(student, teacher), rel=1e-12)


@OWNERS
def test_info_nce_is_the_metric(owner: list[int]) -> None:
    images, texts, index = rows(3), rows(len(owner)), torch.tensor(owner)
    metric = contrastive_losses(unit(images)[None], unit(texts)[None], index, 20.0).mean()
    assert_close(info_nce(images, texts, 20.0, index), metric, 1e-12)


@pytest.mark.parametrize("scale", [1.0, 100.0])
@pytest.mark.parametrize("count", [1, 2, 9])
def test_equal_open_clips(count: int, scale: float) -> None:
    images, texts, teacher_images, teacher_texts = (torch.randn(count, 8) for _ in range(4))
    pair, teacher = (unit(images), unit(texts)), (unit(teacher_images), unit(teacher_texts))
    assert info_nce(images, texts, scale).item() == pytest.approx(ClipLoss()(*pair, scale).item(), rel=1e-5)
    theirs = SigLipLoss()(*pair, scale, -10.0).item()
    assert sigmoid(images, texts, scale, -10.0).item() == pytest.approx(theirs, rel=1e-5)
    _, theirs = DistillClipLoss()(*pair, scale, *teacher, 40.0)
    ours = similarity(images, texts, scale, teacher_images, teacher_texts, 40.0).item()
    assert ours == pytest.approx(theirs.item(), rel=1e-5)


def of_one_block(states: Tensor, teacher: Tensor) -> Tensor:
    return hidden({"text": {2: states}}, {"text": {2: teacher}})


INDEX = torch.tensor([1, 0, 1, 2])


@pytest.mark.parametrize(
    ("loss", "wanted", "rest"),
    [
        (info_nce, (rows(4), rows(4), torch.tensor(3.0, dtype=torch.float64)), ()),
        (info_nce, (rows(3), rows(4), torch.tensor([3.0], dtype=torch.float64)), (INDEX,)),
        (sigmoid, (rows(3), rows(4), *torch.tensor([3.0, -2.0], dtype=torch.float64)), (INDEX,)),
        (
            similarity,
            (rows(3), rows(4), torch.tensor(3.0, dtype=torch.float64)),
            (rows(3, 5), rows(4, 5), torch.tensor(2.0, dtype=torch.float64)),
        ),
        (features, (rows(3), rows(4)), (rows(3), rows(4))),
        (of_one_block, (rows(6, 4).view(2, 3, 4),), (rows(6, 4).view(2, 3, 4),)),
    ],
    ids=["InfoNCE", "InfoNCE, captions", "sigmoid, captions", "similarity", "features", "hidden"],
)
def test_gradients_are_the_numerical_ones(loss: Any, wanted: tuple[Tensor, ...], rest: tuple[Tensor, ...]) -> None:
    inputs = tuple(tensor.detach().clone().requires_grad_() for tensor in wanted)
    assert torch.autograd.gradcheck(lambda *given: loss(*given, *rest), inputs)


def test_the_teacher_gets_no_gradient() -> None:
    student, teacher = [rows(3), rows(3)], [rows(3).requires_grad_(), rows(3).requires_grad_()]
    states = rows(3)[None].requires_grad_()
    values = [
        similarity(student[0], student[1], 2.0, teacher[0], teacher[1], torch.tensor(2.0, requires_grad=True)),
        features(*student, *teacher),
        hidden({"image": {0: rows(3)[None]}}, {"image": {0: states}}),
    ]
    assert not any(value.requires_grad for value in values)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_full(dtype: torch.dtype) -> None:
    given = [torch.randn(5, 8).to(dtype) for _ in range(4)]
    images, texts, teacher_images, teacher_texts = given
    full = [tensor.float() for tensor in given]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = [
            info_nce(images, texts, 50.0),
            sigmoid(images, texts, 50.0, -10.0),
            similarity(images, texts, torch.tensor(50.0), teacher_images, teacher_texts, 50.0),
            features(*given),
            of_one_block(images[None], texts[None]),
        ]
    expected = [
        info_nce(full[0], full[1], 50.0),
        sigmoid(full[0], full[1], 50.0, -10.0),
        similarity(full[0], full[1], 50.0, full[2], full[3], 50.0),
        features(*full),
        of_one_block(full[0][None], full[1][None]),
    ]
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == torch.float32
        assert_close(a, b, 1e-6)
