"""The shipped model: plain open_clip, small, and as good as its card says."""

from __future__ import annotations

from importlib import resources

import open_clip
import torch

from torch_pruning_mope.data import emoji_pairs, load_tiny_clip
from torch_pruning_mope.metrics import Recall

FLOOR = 0.93  # the model card states 95.8 and 98.0 % on this gallery
ASSETS = resources.files("torch_pruning_mope.data") / "assets"


def size_of(name: str) -> int:
    return len((ASSETS / name).read_bytes())


def test_assets_stay_small() -> None:
    assert size_of("sprites.png") + size_of("concepts.tsv") < 3_000_000
    assert size_of("tiny_clip.safetensors") < 8_000_000


def test_licence_and_card_are_shipped() -> None:
    assert "SIL OPEN FONT LICENSE Version 1.1" in (ASSETS / "OFL.txt").read_text("utf-8")
    assert "OFL-1.1" in (ASSETS / "MODEL_CARD.md").read_text("utf-8")


def test_model_is_plain_open_clip_in_float32() -> None:
    model = load_tiny_clip()
    assert type(model) is open_clip.CLIP
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert 3.5e6 < sum(parameter.numel() for parameter in model.parameters()) < 4e6


def test_recall_is_what_the_card_says() -> None:
    model, pairs = load_tiny_clip(), emoji_pairs("test", 500)
    with torch.inference_mode():
        images, texts = model.encode_image(pairs.images), model.encode_text(pairs.tokens)
    for way in ("i2t", "t2i"):
        assert Recall((1,), (way,))(images, texts) > FLOOR, way
