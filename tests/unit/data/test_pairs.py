"""Pairs: what they accept, what they refuse and in which words."""

from __future__ import annotations

import jaxtyping
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from torch_pruning_mope.data import Pairs


def make(images: int = 4, captions: int = 4, index: list[int] | None = None) -> Pairs:
    generator = torch.Generator().manual_seed(0)
    return Pairs(
        torch.randn(images, 3, 8, 8, generator=generator),
        torch.randint(0, 9, (captions, 5), generator=generator),
        None if index is None else torch.tensor(index),
    )


def test_default_index_is_one_caption_each() -> None:
    pairs = make()
    assert pairs.image_index.tolist() == [0, 1, 2, 3]
    assert (pairs.num_images, pairs.num_captions) == (4, 4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((4, 6), r"image_index must be given when images and captions differ.*4 images and 6 captions"),
        ((0, 0), r"images must be .*found no calibration pairs"),
        ((1, 1), r"images must be .*found one pair"),
        ((1, 3, [0, 0, 0]), r"images must be .*found one pair"),
        ((4, 4, [0, 1, 2]), "one integer per caption"),
        ((4, 4, [0, 1, 2, 4]), r"must lie in 0\.\.3; found 0\.\.4"),
        ((4, 4, [-1, 1, 2, 3]), r"must lie in 0\.\.3; found -1\.\.3"),
        ((4, 5, [0, 1, 1, 2, 2]), "a caption for every image; found 1 of 4 without"),
    ],
)
def test_bad_counts_and_indices(arguments: tuple[int, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make(*arguments)


def test_bad_types() -> None:
    images, tokens = torch.randn(2, 3), torch.ones(2, 5, dtype=torch.long)
    with pytest.raises(ValueError, match=r"tokens must be integers .*found torch\.float32 \[2, 5\]"):
        Pairs(images, tokens.float())
    with pytest.raises(ValueError, match=r"image_index must hold one integer per caption; found torch\.float32"):
        Pairs(images, tokens, torch.tensor([0.0, 1.0]))
    with pytest.raises(ValueError, match="found a scalar"):
        Pairs(torch.tensor(1.0), tokens)


def test_from_a_data_loader() -> None:
    pairs = make(7, 7)
    loader = DataLoader(TensorDataset(pairs.images, pairs.tokens), batch_size=3)
    collected = Pairs.coerce(loader)
    assert collected.fingerprint() == pairs.fingerprint()
    assert Pairs.coerce(pairs) is pairs


def test_from_batches_with_several_captions_each() -> None:
    pairs = make(4, 4)
    tokens = torch.stack([pairs.tokens, pairs.tokens + 1, pairs.tokens + 2], dim=1)
    collected = Pairs.from_batches([(pairs.images[:3], tokens[:3]), [pairs.images[3:], tokens[3:]]])
    assert collected.image_index.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert torch.equal(collected.tokens[9:], tokens[3])


@pytest.mark.parametrize(
    ("batches", "error", "words"),
    [
        ([], ValueError, "no calibration pairs"),
        ([(torch.ones(1, 3), torch.ones(1, 5, dtype=torch.long))], ValueError, "found one pair"),
        ([torch.ones(2, 3)], TypeError, r"batches \(images, tokens\) of tensors; found Tensor"),
        ([(torch.ones(2, 3), ["a", "b"])], TypeError, r"found \['Tensor', 'list'\]"),
        ([(torch.ones(2, 3), torch.ones(3, 5, dtype=torch.long))], ValueError, r"images \[2, 3\] and tokens \[3, 5\]"),
        (
            [(torch.ones(2, 3), torch.ones(2, 5, dtype=torch.long)), (torch.ones(2, 4), torch.ones(2, 5).long())],
            ValueError,
            "images must have the same shape",
        ),
    ],
)
def test_bad_batches(batches: object, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        Pairs.from_batches(batches)  # type: ignore[arg-type]


def test_batches_hold_the_first_caption_of_each_image() -> None:
    pairs = make(3, 6, [2, 0, 1, 0, 1, 2])
    batches = list(pairs.batches(2))
    assert [len(images) for images, _ in batches] == [2, 1]
    assert torch.equal(torch.cat([tokens for _, tokens in batches]), pairs.tokens[[1, 2, 0]])
    with pytest.raises(ValueError, match="batch_size must be at least 1; found 0"):
        next(pairs.batches(0))


def test_fingerprint_sees_every_part() -> None:
    pairs = make()
    assert pairs.fingerprint() == make().fingerprint() == pairs.to("cpu").fingerprint()
    others = [
        Pairs(pairs.images + 1, pairs.tokens),
        Pairs(pairs.images, pairs.tokens + 1),
        Pairs(pairs.images, pairs.tokens, torch.tensor([1, 0, 2, 3])),
        Pairs(pairs.images.double(), pairs.tokens),
        Pairs(pairs.images.flatten(1), pairs.tokens),
    ]
    assert len({pairs.fingerprint(), *(other.fingerprint() for other in others)}) == 6


def test_fingerprint_takes_half_precision() -> None:
    pairs = make()
    assert len(Pairs(pairs.images.bfloat16(), pairs.tokens).fingerprint()) == 64


def test_what_cannot_be_iterated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as users run it; else beartype speaks first
    with pytest.raises(TypeError, match=r"must be Pairs or an iterable of .* found int"):
        Pairs.coerce(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="images must be a tensor; found list"):
        Pairs([1, 2], torch.ones(2, 5).long())  # type: ignore[arg-type]
