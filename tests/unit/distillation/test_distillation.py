"""The weighted sum of the terms, and every refusal."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.asserts import assert_close, unchecked
from torch_pruning_mope.distillation import DistillationLoss, Encoded

from .terms import OFF, features, hidden, info_nce, sigmoid, similarity

INDEX = torch.tensor([0, 1, 2, 3, 1])
FOUR = torch.randn(4, 8)


def states(*blocks: int, width: int = 6) -> dict[int, Tensor]:
    return {index: torch.randn(4, 3, width) for index in blocks}


def encoded(scale: float, *blocks: int, size: int = 8) -> Encoded:
    hidden = {"image": states(*blocks), "text": states(*blocks, width=5)}
    return Encoded(torch.randn(4, size), torch.randn(5, size), torch.tensor(scale), torch.tensor(-3.0), hidden)


@pytest.mark.parametrize("siglip", [False, True])
def test_is_the_weighted_sum(siglip: bool) -> None:
    student, teacher = encoded(9.0, 0, 2), encoded(20.0, 0, 1, 2)
    for tensor in (student.images, student.texts, student.logit_scale):
        tensor.requires_grad_()  # type: ignore[union-attr]
    pair, other = (student.images, student.texts), (teacher.images, teacher.texts)
    expected = {
        "contrastive": sigmoid(*pair, 9.0, -3.0, INDEX) if siglip else info_nce(*pair, 9.0, INDEX),
        "similarity": similarity(*pair, 9.0, *other, 20.0),
        "features": features(*pair, *other),
        "hidden": hidden(student.hidden, teacher.hidden),
    }
    total, terms = DistillationLoss.paper(sigmoid=siglip)(student, teacher, image_index=INDEX)
    assert list(terms) == list(expected)
    for name, term in terms.items():
        assert not term.requires_grad
        assert_close(term, expected[name], 1e-6)
    whole = expected["contrastive"] + expected["similarity"] + 1000 * expected["features"] + expected["hidden"]
    assert_close(total, whole, 1e-6)
    for a, b in zip(torch.autograd.grad(total, pair), torch.autograd.grad(whole, pair), strict=True):
        assert_close(a, b, 1e-5)


@pytest.mark.parametrize("kept", ["contrastive", "similarity", "features", "hidden"])
def test_terms_of_weight_zero_are_skipped(kept: str) -> None:
    loss = DistillationLoss(**OFF | {kept: 2.5})
    student, teacher = encoded(9.0, 1), encoded(9.0, 1, size=8 if kept == "features" else 12)
    if kept != "hidden":
        student, teacher = replace(student, hidden=None), replace(teacher, hidden=None)
    index = INDEX if kept == "contrastive" else None
    total, terms = loss(student, None if kept == "contrastive" else teacher, image_index=index)
    assert list(terms) == [kept]
    assert_close(total, 2.5 * terms[kept], 1e-6)


@pytest.mark.parametrize(
    ("weights", "match"),
    [
        ({"similarity": -1.0}, "similarity must be a weight of at least 0; found -1.0. A term of weight 0 is skipped"),
        ({"features": math.nan}, "features must be a weight of at least 0; found nan"),
        ({"contrastive": 0.0, "similarity": 0.0, "features": 0.0, "hidden": 0.0}, "weights must not all be 0; found"),
    ],
)
def test_bad_weights(weights: dict[str, float], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        DistillationLoss(**weights)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda s, t: (s, None), r"teacher must be given for terms \['features', 'hidden', 'similarity'\]; found None"),
        (lambda s, t: (replace(s, hidden=None), t), "found None for the student. Pass the hidden states, or hidden=0"),
        (lambda s, t: (s, replace(t, hidden=None)), "found None for the teacher"),
        (
            lambda s, t: (s, encoded(9.0, 1, size=12)),
            "embeddings of the same size; found 8 of the student and 12 of the te",
        ),
        (lambda s, t: (replace(s, logit_bias=None), t), "logit_bias of the student must be given for the sigmoid loss"),
        (
            lambda s, t: (s, replace(t, images=t.images[:3])),
            "teacher_images must have as many rows as images; found 3 and 4",
        ),
        (
            lambda s, t: (s, replace(t, hidden={"image": {}})),
            r"found blocks \[\] of its image tower, without 1. Key hidden",
        ),
    ],
    ids=["teacher", "hidden", "teacher's hidden", "sizes", "bias", "rows", "blocks"],
)
def test_bad_batches(change: Callable[[Encoded, Encoded], Any], match: str) -> None:
    student, teacher = change(encoded(9.0, 1), encoded(9.0, 1))
    with pytest.raises(ValueError, match=match):
        DistillationLoss.paper(sigmoid=True)(student, teacher, image_index=INDEX)


def refused(images: Any, texts: Any, scale: Any = 9.0, index: Any = None) -> None:
    student = Encoded(FOUR, FOUR, 9.0)
    for name, value in (("images", images), ("texts", texts), ("logit_scale", scale)):
        object.__setattr__(student, name, value)  # past the run-time type check of the tests
    unchecked(DistillationLoss._shares)(DistillationLoss(**OFF | {"contrastive": 1.0}), student, None, index)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (
            (FOUR[0], FOUR),
            r"images must be embeddings, floats \[rows, embedding\]; found torch.float32 \[8\]. Pass what",
        ),
        ((FOUR, FOUR.long()), r"texts must be embeddings, floats \[rows, embedding\]; found torch.int64 \[4, 8\]"),
        ((FOUR, FOUR[:, :5]), "images and texts must be embeddings of the same size; found 8 and 5. Pass both towers'"),
        ((FOUR, FOUR[:3]), r"image_index is required when images \(4\) and captions \(3\) differ in number"),
        (
            (FOUR, FOUR[:3], 9.0, torch.tensor([0, 1])),
            r"one integer per caption; found torch.int64 \[2\] for 3 captions",
        ),
        ((FOUR, FOUR, 9.0, torch.zeros(4)), r"one integer per caption; found torch.float32 \[4\] for 4 captions"),
        (
            (FOUR, FOUR, 9.0, torch.tensor([0, 1, 2, 4])),
            r"image_index must lie in 0..3; found 0..4. Count this rank's own",
        ),
        ((FOUR, FOUR, 9.0, torch.tensor([-1, 1, 2, 3])), r"image_index must lie in 0..3; found -1..3"),
        ((FOUR[:0], FOUR[:0]), "images must hold at least one embedding, on some rank; found none. Skip batches"),
        (
            (FOUR, FOUR[:0], 9.0, torch.zeros(0).long()),
            "texts must hold at least one embedding, on some rank; found none",
        ),
        (
            (FOUR, FOUR, torch.ones(2)),
            r"logit_scale must be one number; found a tensor of shape \[2\]. Pass the model's own",
        ),
        ((FOUR, FOUR, 0.0), "logit_scale must be a positive number; found 0.0. CLIP's is logit_scale.exp"),
        ((FOUR, FOUR, math.inf), "logit_scale must be a positive number; found inf"),
    ],
    ids=lambda value: "" if isinstance(value, tuple) else value[:30],
)
def test_bad_embeddings(arguments: tuple[Any, ...], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        refused(*arguments)


def test_bad_bias() -> None:
    with pytest.raises(ValueError, match="logit_bias must be a finite number; found nan"):
        sigmoid(FOUR, FOUR, 9.0, math.nan)


@pytest.mark.parametrize(
    ("student", "teacher", "match"),
    [
        ({}, {}, "hidden must hold at least one block; found none"),
        ({"image": {}}, {"image": states(0)}, "hidden must hold at least one block; found none"),
        (
            {"text": states(3)},
            {"text": states(0, 1)},
            r"every block of the student; found blocks \[0, 1\] of its text",
        ),
        (
            {"image": states(3, width=4)},
            {"image": states(3)},
            r"found \[4, 3, 4\] and \[4, 3, 6\] in block 3 of the image tower.* L_hidn needs the residual width whole",
        ),
        (
            {"image": {3: torch.zeros(4, 2, 6)}},
            {"image": states(3)},
            r"found \[4, 2, 6\] and \[4, 3, 6\] in block 3 of the image tower. Give both the same batch, at the same resol",
        ),
    ],
    ids=["empty", "no blocks", "missing", "width", "tokens"],
)
def test_bad_hidden_states(student: Any, teacher: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        hidden(student, teacher)
