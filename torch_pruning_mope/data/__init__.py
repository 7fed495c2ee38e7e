"""Pairs to score and to train on, from files or from the embedded emoji scenes, and the tiny CLIP trained on these."""

from torch_pruning_mope.data._batches import DescribedBatch, described_batches
from torch_pruning_mope.data._gather import PairSplit, gather_pairs, split_pairs
from torch_pruning_mope.data._image_pairs import Described, ImagePairs
from torch_pruning_mope.data._labelled import LabelledImages, open_labelled
from torch_pruning_mope.data._listing import CaptionedImage
from torch_pruning_mope.data._loader import PairLoader
from torch_pruning_mope.data._open import open_pairs
from torch_pruning_mope.data._pairs import Pairs, check_batch
from torch_pruning_mope.data._scenes import Split, emoji_batches, emoji_pairs, emoji_scenes
from torch_pruning_mope.data._sharded_pairs import ShardedPairs
from torch_pruning_mope.data._skipped import Problem, Reason, Skipped
from torch_pruning_mope.data._tiny_clip import load_tiny_clip, tiny_clip_config
from torch_pruning_mope.data._tokenizer import EmojiTokenizer

__all__ = [
    "CaptionedImage",
    "Described",
    "DescribedBatch",
    "EmojiTokenizer",
    "ImagePairs",
    "LabelledImages",
    "PairLoader",
    "PairSplit",
    "Pairs",
    "Problem",
    "Reason",
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
