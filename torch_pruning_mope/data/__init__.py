"""Pairs to score on, and the embedded emoji scenes with the tiny CLIP trained on them."""

from torch_pruning_mope.data._captions import (
    CaptionedImage,
    Unusable,
    load_pairs,
    read_coco_captions,
    read_csv_captions,
)
from torch_pruning_mope.data._pairs import Pairs
from torch_pruning_mope.data._scenes import Split, emoji_batches, emoji_pairs, emoji_scenes
from torch_pruning_mope.data._tiny_clip import load_tiny_clip, tiny_clip_config
from torch_pruning_mope.data._tokenizer import EmojiTokenizer

__all__ = [
    "CaptionedImage",
    "EmojiTokenizer",
    "Pairs",
    "Split",
    "Unusable",
    "emoji_batches",
    "emoji_pairs",
    "emoji_scenes",
    "load_pairs",
    "load_tiny_clip",
    "read_coco_captions",
    "read_csv_captions",
    "tiny_clip_config",
]
