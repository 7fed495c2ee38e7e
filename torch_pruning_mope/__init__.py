"""MoPE for Torch-Pruning: prune CLIP-like dual encoders by what a zero-shot metric loses.

See https://arxiv.org/abs/2403.07839 for the method, and ``README.md`` for how to use this package.
"""

from ._request import Counts
from ._version import __version__
from .data import (
    EmojiTokenizer,
    ImagePairs,
    PairLoader,
    Pairs,
    ShardedPairs,
    Skipped,
    emoji_batches,
    emoji_pairs,
    emoji_scenes,
    gather_pairs,
    load_tiny_clip,
    open_pairs,
    split_pairs,
)
from .encoder import DualEncoder
from .errors import (
    DataError,
    MetricError,
    MissingGradientsError,
    ModelLoadError,
    MopeError,
    NonFiniteError,
    PruningMismatchError,
    UngroupedParametersError,
    UnsupportedModelError,
    WrongModelError,
)
from .importance import MoPEImportance, UnitImportance, WeightedImportance
from .metrics import ContrastiveLoss, Metric, Recall
from .models import ModelCheck, check_model, check_models
from .names import LoadedModel, load_model
from .planning import Footprint, Plan, footprints, make_plan, remove_units
from .pruning import prune
from .scoring import Cost, Score, ScoreTable, Separation, Unit, calibration_guidance, estimate_cost, score, separation
from .surgery import PrunableAttention, register_attention
from .towers import (
    AttentionSublayer,
    Block,
    BlockTower,
    FeedForwardSublayer,
    OpaqueTower,
    Stream,
    Sublayer,
    Tower,
    Towers,
    Units,
    register_towers,
    register_units,
)

__all__ = [
    "AttentionSublayer",
    "Block",
    "BlockTower",
    "ContrastiveLoss",
    "Cost",
    "Counts",
    "DataError",
    "DualEncoder",
    "EmojiTokenizer",
    "FeedForwardSublayer",
    "Footprint",
    "ImagePairs",
    "LoadedModel",
    "Metric",
    "MetricError",
    "MissingGradientsError",
    "MoPEImportance",
    "ModelCheck",
    "ModelLoadError",
    "MopeError",
    "NonFiniteError",
    "OpaqueTower",
    "PairLoader",
    "Pairs",
    "Plan",
    "PrunableAttention",
    "PruningMismatchError",
    "Recall",
    "Score",
    "ScoreTable",
    "Separation",
    "ShardedPairs",
    "Skipped",
    "Stream",
    "Sublayer",
    "Tower",
    "Towers",
    "UngroupedParametersError",
    "Unit",
    "UnitImportance",
    "Units",
    "UnsupportedModelError",
    "WeightedImportance",
    "WrongModelError",
    "__version__",
    "calibration_guidance",
    "check_model",
    "check_models",
    "emoji_batches",
    "emoji_pairs",
    "emoji_scenes",
    "estimate_cost",
    "footprints",
    "gather_pairs",
    "load_model",
    "load_tiny_clip",
    "make_plan",
    "open_pairs",
    "prune",
    "register_attention",
    "register_towers",
    "register_units",
    "remove_units",
    "score",
    "separation",
    "split_pairs",
]
