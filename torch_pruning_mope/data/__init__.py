"""Pairs to score and to train on, from files or from the embedded emoji scenes, and the tiny CLIP trained on these."""

from ._gather import DescribedBatch, PairSplit, described_batches, gather_pairs, split_pairs
from ._image_pairs import ImagePairs
from ._labelled import LabelledImages, open_labelled
from ._listing import CaptionedImage
from ._loader import PairLoader
from ._open import open_pairs
from ._pairs import Pairs, check_batch
from ._scenes import Split, emoji_batches, emoji_pairs, emoji_scenes
from ._sharded_pairs import ShardedPairs
from ._skipped import Skipped
from ._tiny_clip import EmojiTokenizer, load_tiny_clip, tiny_clip_config

__all__ = [
    "CaptionedImage",
    "DescribedBatch",
    "EmojiTokenizer",
    "ImagePairs",
    "LabelledImages",
    "PairLoader",
    "PairSplit",
    "Pairs",
    "ShardedPairs",
    "Skipped",
    "Split",
    "check_batch",
    "described_batches",
    "emoji_batches",
    "emoji_pairs",
    "emoji_scenes",
    "gather_pairs",
    "load_tiny_clip",
    "open_labelled",
    "open_pairs",
    "split_pairs",
    "tiny_clip_config",
]
