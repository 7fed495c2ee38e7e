"""MoPE for Torch-Pruning: prune CLIP-like dual encoders by what a zero-shot metric loses.

See https://arxiv.org/abs/2403.07839 for the method, and ``README.md`` for how to use this package.
"""

from typing import TYPE_CHECKING, Any

from ._version import __version__
from .checkpoint import load
from .data import (
    EmojiTokenizer,
    ImagePairs,
    LabelledImages,
    PairLoader,
    Pairs,
    ShardedPairs,
    Skipped,
    emoji_batches,
    emoji_pairs,
    emoji_scenes,
    gather_pairs,
    load_tiny_clip,
    open_labelled,
    open_pairs,
    split_pairs,
)
from .deploy import export, fold
from .distillation import (
    DistillationLoss,
    Encoded,
    FeatureLoss,
    HiddenLoss,
    InfoNCELoss,
    SigmoidLoss,
    SimilarityLoss,
    TeacherCache,
    TrainingStep,
    chunked_backward,
    distil,
    distill,
)
from .encoder import DualEncoder
from .errors import (
    DataError,
    ExportError,
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
from .evaluation import (
    OpenClipModel,
    RetrievalResult,
    ZeroShotResult,
    evaluate,
    evaluate_retrieval,
    evaluate_zero_shot,
    save_evaluation,
)
from .importance import MoPEImportance, UnitImportance, WeightedImportance, stock_scores
from .metrics import ContrastiveLoss, Metric, Recall, ZeroShotAccuracy
from .models import ModelCheck, check_model, check_models
from .names import LoadedModel, load_model
from .planning import Footprint, LayerPlan, Plan, PlanRange, Reason, footprints, make_plan, plan_range
from .pruning import Counts
from .pruning._prune import prune
from .pruning._remove import remove_units
from .scoring import Cost, Score, ScoreTable, Separation, Unit, calibration_guidance, estimate_cost, score, separation
from .stages import finetune_stage, pretrain_stage, run_stage
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

if TYPE_CHECKING:
    from .report import ChangedExamples, Example, append_jsonl, changed_examples, write_report

__all__ = [
    "AttentionSublayer",
    "Block",
    "BlockTower",
    "ChangedExamples",
    "ContrastiveLoss",
    "Cost",
    "Counts",
    "DataError",
    "DistillationLoss",
    "DualEncoder",
    "EmojiTokenizer",
    "Encoded",
    "Example",
    "ExportError",
    "FeatureLoss",
    "FeedForwardSublayer",
    "Footprint",
    "HiddenLoss",
    "ImagePairs",
    "InfoNCELoss",
    "LabelledImages",
    "LayerPlan",
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
    "OpenClipModel",
    "PairLoader",
    "Pairs",
    "Plan",
    "PlanRange",
    "PrunableAttention",
    "PruningMismatchError",
    "Reason",
    "Recall",
    "RetrievalResult",
    "Score",
    "ScoreTable",
    "Separation",
    "ShardedPairs",
    "SigmoidLoss",
    "SimilarityLoss",
    "Skipped",
    "Stream",
    "Sublayer",
    "TeacherCache",
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
    "ZeroShotAccuracy",
    "ZeroShotResult",
    "__version__",
    "append_jsonl",
    "calibration_guidance",
    "changed_examples",
    "check_model",
    "check_models",
    "chunked_backward",
    "distil",
    "distill",
    "emoji_batches",
    "emoji_pairs",
    "emoji_scenes",
    "estimate_cost",
    "evaluate",
    "evaluate_retrieval",
    "evaluate_zero_shot",
    "export",
    "finetune_stage",
    "fold",
    "footprints",
    "gather_pairs",
    "load",
    "load_model",
    "load_tiny_clip",
    "make_plan",
    "open_labelled",
    "open_pairs",
    "plan_range",
    "pretrain_stage",
    "prune",
    "register_attention",
    "register_towers",
    "register_units",
    "remove_units",
    "run_stage",
    "save_evaluation",
    "score",
    "separation",
    "split_pairs",
    "stock_scores",
    "write_report",
]

_IN_REPORT = frozenset({"ChangedExamples", "Example", "append_jsonl", "changed_examples", "write_report"})


def __getattr__(name: str) -> Any:
    """What draws is imported when it is asked for: matplotlib takes a while, and scoring and pruning do without."""
    if name in _IN_REPORT:
        from . import report

        return getattr(report, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
