"""The contrastive loss against cross-entropy, and with several captions against its definition."""

import math

import pytest
import torch
import torch.nn.functional as F

from torch_pruning_mope.metrics import ContrastiveLoss, contrastive_losses


@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
@pytest.mark.parametrize("count", [2, 3, 17])
def test_equals_cross_entropy(count: int, scale: float) -> None:
    images, texts = F.normalize(torch.randn(count, 8), dim=-1), F.normalize(torch.randn(count, 8), dim=-1)
    logits, labels = scale * images @ texts.T, torch.arange(count)
    i2t, t2i = (F.cross_entropy(x, labels, reduction="none") for x in (logits, logits.T))
    losses = contrastive_losses(images[None], texts[None], labels, scale)[0]
    assert torch.allclose(losses, (i2t + t2i) / 2, atol=1e-4, rtol=1e-5)
    expected = float((F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2)
    assert ContrastiveLoss(scale)(images, texts) == pytest.approx(-expected, rel=1e-5)


def test_gradients_equal_cross_entropys() -> None:
    images, texts = (F.normalize(torch.randn(5, 4), dim=-1).requires_grad_() for _ in range(2))
    labels = torch.arange(5)
    logits = 10 * images @ texts.T
    expected = torch.autograd.grad(
        (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2, (images, texts)
    )
    found = torch.autograd.grad(contrastive_losses(images[None], texts[None], labels, 10.0).mean(), (images, texts))
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_several_captions_follow_the_definition() -> None:
    index = [0, 2, 1, 0, 2, 2]
    images, texts = F.normalize(torch.randn(3, 8), dim=-1), F.normalize(torch.randn(6, 8), dim=-1)
    total = 0.0
    for j, owner in enumerate(index):
        s = [[5.0 * float(image @ text) for text in texts] for image in images]
        t2i = -s[owner][j] + math.log(sum(math.exp(s[i][j]) for i in range(3)))
        others = [s[owner][c] for c in range(6) if index[c] != owner]
        i2t = -s[owner][j] + math.log(math.exp(s[owner][j]) + sum(map(math.exp, others)))
        total += (i2t + t2i) / 2 / len(index)
    found = contrastive_losses(images[None], texts[None], torch.tensor(index), 5.0)
    assert found.shape == (1, 3)
    assert float(found.mean()) == pytest.approx(total, rel=1e-5)
    assert ContrastiveLoss(5.0)(images, texts, torch.tensor(index)) == pytest.approx(-total, rel=1e-5)


def test_ablations_are_batched() -> None:
    images, texts, index = torch.randn(4, 6, 8), torch.randn(1, 6, 8), torch.arange(6)
    metric = ContrastiveLoss(2.0)
    single = [metric.values(image[None], texts, index)[0] for image in images]
    assert metric.values(images, texts, index) == pytest.approx(single, rel=1e-12)


def test_higher_is_better() -> None:
    embeddings = torch.eye(6)
    assert ContrastiveLoss()(embeddings, embeddings) > ContrastiveLoss()(embeddings, embeddings.roll(1, 0))
