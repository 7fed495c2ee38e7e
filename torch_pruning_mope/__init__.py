"""MoPE for Torch-Pruning: prune CLIP-like dual encoders by what a zero-shot metric loses.

See https://arxiv.org/abs/2403.07839 for the method, and ``README.md`` for how to use this package.
"""

from ._request import Counts
from ._version import __version__
from .data import EmojiTokenizer, Pairs, emoji_batches, emoji_pairs, emoji_scenes, load_tiny_clip
from .encoder import DualEncoder
from .errors import (
    MetricError,
    MissingGradientsError,
    MopeError,
    NonFiniteError,
    PruningMismatchError,
    UngroupedParametersError,
    UnsupportedModelError,
    WrongModelError,
)
from .importance import MoPEImportance, UnitImportance, WeightedImportance
from .metrics import ContrastiveLoss, Metric, Recall
from .pruning import prune
from .scoring import Score, ScoreTable, Unit, score
from .surgery import PrunableAttention, register_attention
from .towers import (
    AttentionSublayer,
    Block,
    FeedForwardSublayer,
    Stream,
    Sublayer,
    Tower,
    Towers,
    register_towers,
)

__all__ = [
    "AttentionSublayer",
    "Block",
    "ContrastiveLoss",
    "Counts",
    "DualEncoder",
    "EmojiTokenizer",
    "FeedForwardSublayer",
    "Metric",
    "MetricError",
    "MissingGradientsError",
    "MoPEImportance",
    "MopeError",
    "NonFiniteError",
    "Pairs",
    "PrunableAttention",
    "PruningMismatchError",
    "Recall",
    "Score",
    "ScoreTable",
    "Stream",
    "Sublayer",
    "Tower",
    "Towers",
    "UngroupedParametersError",
    "Unit",
    "UnitImportance",
    "UnsupportedModelError",
    "WeightedImportance",
    "WrongModelError",
    "__version__",
    "emoji_batches",
    "emoji_pairs",
    "emoji_scenes",
    "load_tiny_clip",
    "prune",
    "register_attention",
    "register_towers",
    "score",
]
