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
    TeacherEmbeddings,
    TrainingStep,
    chunked_backward,
    distil,
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
from .planning import Footprint, Plan, footprints, make_plan, remove_units
from .pruning import prune
from .scoring import Cost, Score, ScoreTable, Separation, Unit, calibration_guidance, estimate_cost, score, separation
from .stages import finetune_stage, pretrain_stage
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
    "Footprint",
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
    "Plan",
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
    "TeacherEmbeddings",
    "Tower",
    "Towers",
    "TrainingStep",
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
    "distil",
    "emoji_batches",
    "emoji_pairs",
    "emoji_scenes",
    "estimate_cost",
    "finetune_stage",
    "footprints",
    "load_model",
    "load_tiny_clip",
    "make_plan",
    "pretrain_stage",
    "prune",
    "register_attention",
    "register_towers",
    "register_units",
    "remove_units",
    "score",
    "separation",
]
