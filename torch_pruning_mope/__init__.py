"""MoPE for Torch-Pruning: prune CLIP-like dual encoders by what a zero-shot metric loses.

See https://arxiv.org/abs/2403.07839 for the method, and ``README.md`` for how to use this package.
"""

from ._request import Counts
from ._version import __version__
from .data import EmojiTokenizer, Pairs, emoji_batches, emoji_pairs, emoji_scenes, load_tiny_clip
from .distillation import (
    DistillationLoss,
    Encoded,
    FeatureLoss,
    HiddenLoss,
    InfoNCELoss,
    SigmoidLoss,
    SimilarityLoss,
    chunked_backward,
)
from .encoder import DualEncoder
from .errors import (
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
    "DistillationLoss",
    "DualEncoder",
    "EmojiTokenizer",
    "Encoded",
    "FeatureLoss",
    "FeedForwardSublayer",
    "HiddenLoss",
    "InfoNCELoss",
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
    "Pairs",
    "PrunableAttention",
    "PruningMismatchError",
    "Recall",
    "Score",
    "ScoreTable",
    "Separation",
    "SigmoidLoss",
    "SimilarityLoss",
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
    "chunked_backward",
    "emoji_batches",
    "emoji_pairs",
    "emoji_scenes",
    "estimate_cost",
    "load_model",
    "load_tiny_clip",
    "prune",
    "register_attention",
    "register_towers",
    "register_units",
    "score",
    "separation",
]
