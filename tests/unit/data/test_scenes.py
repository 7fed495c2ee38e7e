"""Emoji scenes: the same on every machine, disjoint between splits, and truthfully captioned."""

from __future__ import annotations

import hashlib
import itertools
import re

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_pruning_mope.data import emoji_batches, emoji_pairs, emoji_scenes
from torch_pruning_mope.data._emoji import BACKGROUNDS, RELATIONS, Scene, caption, concepts, true_relations
from torch_pruning_mope.data._scenes import Split, _gallery, split_of

SPLITS: tuple[Split, ...] = ("train", "calibration", "test")
FIRST_SCENES = {
    "train": "3f1662c7031dcdcc",
    "calibration": "24725f54c7e8f691",
    "test": "12d8ff85630ad5d8",
}


def digest(scenes: list[tuple[np.ndarray, str]]) -> str:
    sha = hashlib.sha256()
    for image, words in scenes:
        sha.update(image.tobytes() + words.encode())
    return sha.hexdigest()[:16]


@pytest.mark.parametrize("split", SPLITS)
def test_first_scenes_never_change(split: Split) -> None:
    assert digest(emoji_scenes(split, 20)) == FIRST_SCENES[split]


def test_first_batches_never_change() -> None:
    sha = hashlib.sha256()
    for images, tokens in emoji_batches(3, 8):
        sha.update(images.numpy().tobytes() + tokens.numpy().tobytes())
    assert sha.hexdigest()[:16] == "95dffed43176d9ea"


seeds = st.integers(0, 2**32)


@settings(max_examples=5, deadline=None)
@given(seeds=st.tuples(seeds, seeds, seeds), size=st.integers(2, 120))
def test_splits_share_no_content_and_galleries_hold_no_twins(seeds: tuple[int, int, int], size: int) -> None:
    galleries = [_gallery(split, size, seed) for split, seed in zip(SPLITS, seeds, strict=True)]
    everything = [scene for gallery in galleries for scene in gallery]
    assert len({scene.content for scene in everything}) == len(everything) == 3 * size
    assert len({caption(scene) for scene in everything}) == len(everything)
    for split, gallery in zip(SPLITS, galleries, strict=True):
        assert {split_of(scene.content) for scene in gallery} == {split}


def test_no_caption_is_true_of_another_image_of_its_gallery() -> None:
    contents = [(set(scene.content[0]), scene.content[1]) for scene in _gallery("test", 600, 1)]
    for (first, behind_first), (second, behind_second) in itertools.combinations(contents, 2):
        assert behind_first != behind_second or not (first <= second or second <= first)


def test_glyph_order_does_not_change_the_split() -> None:
    assert split_of(((3, 1, 2), "red")) == split_of(((1, 2, 3), "red"))


def read(words: str) -> tuple[list[str], list[str], str]:
    """Parses a caption with the grammar `phrase (relation phrase)* on background`; an oracle apart from the writer."""
    body, background = words.rsplit(" on ", 1)
    parts = re.split(f" ({'|'.join(RELATIONS)}) ", body)
    return parts[::2], parts[1::2], background


@settings(max_examples=4, deadline=None)
@given(seed=seeds)
def test_captions_are_true_and_read_back(seed: int) -> None:
    names = {concept.noun_phrase: index for index, concept in enumerate(concepts())}
    for scene in _gallery("train", 100, seed):
        phrases, relations, background = read(caption(scene))
        assert [names[phrase] for phrase in phrases] == [glyph.concept for glyph in scene.glyphs]
        assert tuple(relations) == scene.relations
        assert background == scene.background
        for first, relation, second in zip(scene.glyphs, relations, scene.glyphs[1:], strict=False):
            assert relation in true_relations(first, second)
        assert_inside_and_apart(scene)


def assert_inside_and_apart(scene: Scene) -> None:
    for glyph in scene.glyphs:
        assert 0 <= min(glyph.x, glyph.y) <= max(glyph.x, glyph.y) + glyph.size <= 64
    for first, second in itertools.combinations(scene.glyphs, 2):
        assert true_relations(first, second), "glyphs overlap"


def test_picture_shows_the_background_it_states() -> None:
    for image, words in emoji_scenes("train", 50):
        colours, counts = np.unique(image.reshape(-1, 3), axis=0, return_counts=True)
        stated = np.array(BACKGROUNDS[words.rsplit(" ", 1)[1]])
        assert counts[(colours == stated).all(axis=1)].sum() > 400


def test_concept_names_are_unique_and_plain() -> None:
    names = [concept.name for concept in concepts()]
    assert len(set(names)) == len(names) == 791
    assert max(len(name.split()) for name in names) == 3
    assert all(name.isascii() and name == name.lower() for name in names)


@pytest.mark.parametrize(
    ("name", "phrase"),
    [
        ("red apple", "a red apple"),
        ("owl", "an owl"),
        ("unicorn", "a unicorn"),
        ("x-ray", "an x-ray"),
        ("grapes", "grapes"),
        ("bus", "a bus"),
        ("nest with eggs", "a nest with eggs"),
        ("clinking beer mugs", "clinking beer mugs"),
    ],
)
def test_noun_phrases(name: str, phrase: str) -> None:
    (found,) = (concept.noun_phrase for concept in concepts() if concept.name == name)
    assert found == phrase


def test_pairs_are_the_scenes_as_tensors() -> None:
    pairs, scenes = emoji_pairs("calibration", 30, seed=3), emoji_scenes("calibration", 30, seed=3)
    assert pairs.images.shape == (30, 3, 64, 64)
    assert pairs.images.dtype == torch.float32
    pixels = np.stack([image for image, _ in scenes])
    restored = ((pairs.images + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    assert (restored == pixels).all()
    assert torch.equal(emoji_pairs("calibration", 10, seed=3).tokens, pairs.tokens[:10])


def test_batches_resume_and_begin_with_single_objects() -> None:
    whole = list(emoji_batches(6, 16, seed=5, curriculum_steps=4))
    resumed = list(emoji_batches(6, 16, seed=5, curriculum_steps=4, start=4))
    for (images, tokens), (images_again, tokens_again) in zip(whole[4:], resumed, strict=True):
        assert torch.equal(images, images_again)
        assert torch.equal(tokens, tokens_again)
    lengths = [(tokens > 0).sum(dim=1).float().mean() for _, tokens in emoji_batches(5, 64, curriculum_steps=4)]
    assert lengths[0] < 8 < 12 < lengths[4]


def test_bad_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as users run it; else beartype speaks first
    with pytest.raises(ValueError, match="split must be one of train, calibration, test; found 'val'"):
        emoji_pairs("val")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="size must be between 2 and 20000 pairs; found 1"):
        emoji_pairs("test", 1)
