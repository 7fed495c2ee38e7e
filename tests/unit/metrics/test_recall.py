"""Recall against a loop that reads like its definition."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from torch_pruning_mope.metrics import Recall, _metric, image_to_text_ranks, resolve_metric, text_to_image_ranks

FEW = settings(max_examples=60, deadline=None)


def brute_force(images: Tensor, texts: Tensor, index: list[int], k: int, direction: str) -> float:
    """A query is found if fewer than k wrong candidates are as similar as its best right one, or more so."""
    hits = []
    if direction == "i2t":
        for i, image in enumerate(images):
            similarities = [float(image @ text) for text in texts]
            best = max(s for s, owner in zip(similarities, index, strict=True) if owner == i)
            hits.append(sum(s >= best for s, owner in zip(similarities, index, strict=True) if owner != i) < k)
    else:
        for text, owner in zip(texts, index, strict=True):
            similarities = [float(image @ text) for image in images]
            hits.append(sum(s >= similarities[owner] for i, s in enumerate(similarities) if i != owner) < k)
    return sum(hits) / len(hits)


@st.composite
def retrieval(draw: st.DrawFn) -> tuple[Tensor, Tensor, list[int]]:
    """Embeddings of few small integers, so that similarities are exact and tie often; one to many captions per image."""
    count = draw(st.integers(2, 7))
    index = list(range(count)) + draw(st.lists(st.integers(0, count - 1), max_size=6))
    index = draw(st.permutations(index))
    dims = draw(st.integers(1, 3))
    numbers = st.lists(st.integers(-2, 2), min_size=dims, max_size=dims)
    images = draw(st.lists(numbers, min_size=count, max_size=count))
    texts = draw(st.lists(numbers, min_size=len(index), max_size=len(index)))
    return torch.tensor(images).float(), torch.tensor(texts).float(), list(index)


@FEW
@given(retrieval(), st.integers(1, 5), st.sampled_from(["i2t", "t2i"]))
def test_recall_equals_brute_force(case: tuple[Tensor, Tensor, list[int]], k: int, direction: str) -> None:
    images, texts, index = case
    found = Recall((k,), (direction,)).values(images[None], texts[None], torch.tensor(index))
    assert found == [pytest.approx(brute_force(images, texts, index, k, direction), abs=1e-12)]


@FEW
@given(retrieval())
def test_recall_mean_is_the_mean_of_six(case: tuple[Tensor, Tensor, list[int]]) -> None:
    images, texts, index = case
    parts = [brute_force(images, texts, index, k, d) for k in (1, 5, 10) for d in ("i2t", "t2i")]
    assert Recall().values(images[None], texts[None], torch.tensor(index))[0] == pytest.approx(
        sum(parts) / 6, abs=1e-12
    )


@FEW
@given(retrieval(), st.randoms(use_true_random=False))
def test_the_order_of_pairs_does_not_matter(case: tuple[Tensor, Tensor, list[int]], random: object) -> None:
    images, texts, index = case
    shuffled_images = torch.randperm(len(images))
    shuffled_texts = torch.randperm(len(texts))
    where = shuffled_images.argsort()
    new_index = where[torch.tensor(index)][shuffled_texts]
    metric = Recall((1, 2))
    before = metric.per_image(images[None], texts[None], torch.tensor(index))
    after = metric.per_image(images[None, shuffled_images], texts[None, shuffled_texts], new_index)
    assert torch.allclose(before[:, shuffled_images], after, atol=1e-12)


@pytest.mark.parametrize("captions", [1, 5])
@pytest.mark.parametrize("metric", ["recall_mean", "recall@1", "recall@5:i2t", "recall@5:t2i"])
@pytest.mark.parametrize("collapsed", ["both", "images", "texts", "zero"])
def test_collapsed_embeddings_score_no_more_than_chance(collapsed: str, metric: str, captions: int) -> None:
    count = 40
    index = torch.arange(count).repeat(captions)
    images, texts = torch.randn(count, 8), torch.randn(count * captions, 8)
    if collapsed in {"both", "images", "zero"}:
        images = images[:1].expand(count, -1) * (collapsed != "zero")
    if collapsed in {"both", "texts"}:
        texts = texts[:1].expand(count * captions, -1)
    chance = 10 / count
    assert resolve_metric(metric)(images, texts, index) <= chance


def test_perfect_embeddings_score_one() -> None:
    embeddings = torch.eye(6)
    assert Recall((1,))(embeddings, embeddings) == 1.0


@pytest.mark.parametrize("tile", [1, 7, 40])
def test_tiles_do_not_change_ranks(monkeypatch: pytest.MonkeyPatch, tile: int) -> None:
    index = torch.arange(9).repeat(2)[torch.randperm(18)]
    images, texts = torch.randn(3, 9, 4), torch.randn(1, 18, 4)
    expected = image_to_text_ranks(images, texts, index), text_to_image_ranks(images, texts, index)
    monkeypatch.setattr(_metric, "_TILE", tile)
    assert torch.equal(image_to_text_ranks(images, texts, index), expected[0])
    assert torch.equal(text_to_image_ranks(images, texts, index), expected[1])


def test_ablations_are_batched_exactly() -> None:
    index = torch.arange(9)
    images, texts = torch.randn(4, 9, 5), torch.randn(1, 9, 5)
    together = Recall().values(images, texts, index)
    assert together == [Recall().values(image[None], texts, index)[0] for image in images]


def test_shares_average_to_the_value_with_unequal_numbers_of_captions() -> None:
    index = torch.tensor([0, 0, 0, 1, 2, 2])
    images, texts = torch.randn(1, 3, 4), torch.randn(1, 6, 4)
    metric = Recall((1,), ("t2i",))
    expected = brute_force(images[0], texts[0], index.tolist(), 1, "t2i")
    assert metric.per_image(images, texts, index).mean() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("ks", "directions", "match"),
    [
        ((), ("i2t",), "ks must be cut-offs of at least 1"),
        ((0,), ("i2t",), "ks must be cut-offs of at least 1"),
        ((1,), (), "directions must be"),
        ((1,), ("x",), "directions must be"),
    ],
)
def test_nonsense_is_refused(ks: tuple[int, ...], directions: tuple[str, ...], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Recall(ks, directions)
