"""Properties of the losses on any batch."""

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from .terms import features, hidden, info_nce, sigmoid, similarity

FEW = settings(max_examples=40, deadline=None)


class Batch:
    """A student's and a teacher's embeddings of a few images with any numbers of captions, some hidden states."""

    def __init__(self, owner: list[int], images: int, size: int, seed: int, scale: float, spread: float) -> None:
        generator = torch.Generator().manual_seed(seed)

        def rows(*shape: int) -> Tensor:
            return spread * torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.index, self.scale = torch.tensor(owner), scale
        self.images, self.texts = rows(images, size), rows(len(owner), size)
        self.teacher_images, self.teacher_texts = rows(images, size), rows(len(owner), size)
        self.states, self.teacher_states = rows(images, 3, size), rows(images, 3, size)

    def losses(self) -> dict[str, Tensor]:
        teacher = self.teacher_images, self.teacher_texts
        return {
            "info_nce": info_nce(self.images, self.texts, self.scale, self.index),
            "sigmoid": sigmoid(self.images, self.texts, self.scale, -5.0, self.index),
            "similarity": similarity(self.images, self.texts, self.scale, *teacher, self.scale),
            "features": features(self.images, self.texts, *teacher),
            "hidden": hidden({"image": {1: self.states}}, {"image": {0: self.states, 1: self.teacher_states}}),
        }


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    images = draw(st.integers(1, 6))
    owner = draw(st.lists(st.integers(0, images - 1), min_size=1, max_size=8))
    scale, spread = draw(st.floats(0.01, 1000)), draw(st.sampled_from([0.0, 1e-6, 1.0, 1e6]))
    return Batch(owner, images, draw(st.integers(1, 7)), draw(st.integers(0, 1000)), scale, spread)


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-9, atol=1e-12)


@FEW
@given(batches())
def test_finite_and_not_negative_with_finite_gradients(batch: Batch) -> None:
    wanted = [batch.images, batch.texts, batch.states]
    for tensor in wanted:
        tensor.requires_grad_()
    losses = batch.losses()
    for name, loss in losses.items():
        assert loss.shape == (), name
        assert torch.isfinite(loss), name
        assert loss >= 0, name
    for gradient in torch.autograd.grad(sum(losses.values()), wanted):  # type: ignore[arg-type]
        assert torch.isfinite(gradient).all()


@FEW
@given(batches(), st.randoms(use_true_random=False))
def test_order_in_the_batch_does_not_matter(batch: Batch, random: Any) -> None:
    before = batch.losses()
    order = list(range(len(batch.images)))
    random.shuffle(order)
    moved = torch.tensor(order)
    for name in ("images", "teacher_images", "states", "teacher_states"):
        setattr(batch, name, getattr(batch, name)[moved])
    batch.index = moved.argsort()[batch.index]
    order = list(range(len(batch.texts)))
    random.shuffle(order)
    for name in ("texts", "teacher_texts", "index"):
        setattr(batch, name, getattr(batch, name)[torch.tensor(order)])
    for name, loss in batch.losses().items():
        assert close(loss, before[name]), name


@FEW
@given(batches(), st.floats(0.1, 10))
def test_nothing_to_learn_at_the_teacher(batch: Batch, stretch: float) -> None:
    """L_feat and L_hidn are zero there; L_sim is lowest, at the teacher's entropy, with no gradient."""
    elsewhere = batch.losses()["similarity"]
    batch.images = (stretch * batch.teacher_images).requires_grad_()
    batch.texts = (stretch * batch.teacher_texts).requires_grad_()
    batch.states = batch.teacher_states
    losses = batch.losses()
    assert losses["features"] <= 1e-25
    assert losses["hidden"] == 0
    assert losses["similarity"] <= elsewhere + 1e-9
    # In units of the scale, and of how far embeddings are from the origin.
    for gradient, rows in zip(
        torch.autograd.grad(losses["similarity"], (batch.images, batch.texts)), (batch.images, batch.texts), strict=True
    ):
        assert (gradient.norm(dim=-1) * rows.norm(dim=-1) / batch.scale <= 1e-9).all()


@FEW
@given(batches(), st.floats(0.1, 10))
def test_length_of_embeddings_does_not_matter(batch: Batch, stretch: float) -> None:
    before = batch.losses()
    if batch.images.abs().max() > 1e-3:  # F.normalize leaves what is all but zero alone
        batch.images, batch.teacher_texts = stretch * batch.images, stretch * batch.teacher_texts
    for name, loss in batch.losses().items():
        assert close(loss, before[name]), name
