"""MoPE for Torch-Pruning: prune CLIP-like dual encoders by what a zero-shot metric loses.

See https://arxiv.org/abs/2403.07839 for the method, and ``README.md`` for how to use this package. Every name is imported when
it is first asked for: ``mope --help`` needs no torch, and scoring no matplotlib.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from .checkpoint import load, load_model
    from .cost import Footprint, footprints
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
    from .dual_encoder import DualEncoder
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
        ModelCheck,
        OpenClipModel,
        RetrievalResult,
        ZeroShotResult,
        check_model,
        check_models,
        evaluate,
        evaluate_retrieval,
        evaluate_zero_shot,
        save_evaluation,
    )
    from .importance import MoPEImportance, UnitImportance, WeightedImportance, stock_scores
    from .loading import LoadedModel
    from .metrics import ContrastiveLoss, Metric, Recall, ZeroShotAccuracy
    from .planning import LayerPlan, Plan, PlanRange, make_plan, plan_range
    from .pruning import Counts, prune, remove_units
    from .reconstruction import ReconstructionReport, reconstruct
    from .report import ChangedExamples, Example, append_jsonl, changed_examples, write_report
    from .runs import compress, finetune_stage, pretrain_stage, run_stage
    from .runtime import ExportedModel, load_exported
    from .scoring import (
        Score,
        ScoreTable,
        ScoringCost,
        Separation,
        Unit,
        calibration_guidance,
        estimate_cost,
        score,
        separation,
    )
    from .surgery import PrunableAttention, register_attention
    from .towers import (
        AttentionSublayer,
        Block,
        BlockTower,
        Channels,
        FeedForwardSublayer,
        OpaqueTower,
        Stream,
        Sublayer,
        Tower,
        Towers,
        register_channels,
        register_towers,
    )

__all__ = [
    "AttentionSublayer",
    "Block",
    "BlockTower",
    "ChangedExamples",
    "Channels",
    "ContrastiveLoss",
    "Counts",
    "DataError",
    "DistillationLoss",
    "DualEncoder",
    "EmojiTokenizer",
    "Encoded",
    "Example",
    "ExportError",
    "ExportedModel",
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
    "Recall",
    "ReconstructionReport",
    "RetrievalResult",
    "Score",
    "ScoreTable",
    "ScoringCost",
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
    "compress",
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
    "load_exported",
    "load_model",
    "load_tiny_clip",
    "make_plan",
    "open_labelled",
    "open_pairs",
    "plan_range",
    "pretrain_stage",
    "prune",
    "reconstruct",
    "register_attention",
    "register_channels",
    "register_towers",
    "remove_units",
    "run_stage",
    "save_evaluation",
    "score",
    "separation",
    "split_pairs",
    "stock_scores",
    "write_report",
]

_HOMES = {
    "checkpoint": "load load_model",
    "cost": "Footprint footprints",
    "data": (
        "EmojiTokenizer ImagePairs LabelledImages PairLoader Pairs ShardedPairs Skipped emoji_batches emoji_pairs "
        "emoji_scenes gather_pairs load_tiny_clip open_labelled open_pairs split_pairs"
    ),
    "deploy": "export fold",
    "distillation": (
        "DistillationLoss Encoded FeatureLoss HiddenLoss InfoNCELoss SigmoidLoss SimilarityLoss TeacherCache "
        "TrainingStep chunked_backward distil distill"
    ),
    "dual_encoder": "DualEncoder",
    "errors": (
        "DataError ExportError MetricError MissingGradientsError ModelLoadError MopeError NonFiniteError "
        "PruningMismatchError UngroupedParametersError UnsupportedModelError WrongModelError"
    ),
    "evaluation": (
        "ModelCheck OpenClipModel RetrievalResult ZeroShotResult check_model check_models evaluate "
        "evaluate_retrieval evaluate_zero_shot save_evaluation"
    ),
    "importance": "MoPEImportance UnitImportance WeightedImportance stock_scores",
    "loading": "LoadedModel",
    "metrics": "ContrastiveLoss Metric Recall ZeroShotAccuracy",
    "planning": "LayerPlan Plan PlanRange make_plan plan_range",
    "pruning": "Counts prune remove_units",
    "reconstruction": "ReconstructionReport reconstruct",
    "report": "ChangedExamples Example append_jsonl changed_examples write_report",
    "runs": "compress finetune_stage pretrain_stage run_stage",
    "runtime": "ExportedModel load_exported",
    "scoring": "Score ScoreTable ScoringCost Separation Unit calibration_guidance estimate_cost score separation",
    "surgery": "PrunableAttention register_attention",
    "towers": (
        "AttentionSublayer Block BlockTower Channels FeedForwardSublayer OpaqueTower Stream Sublayer Tower Towers "
        "register_channels register_towers"
    ),
}
"""The module of each name: a new one goes here, into the imports above and into ``__all__``; a test compares them."""
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    """Imports what is asked for: a name of the table, or a public subpackage."""
    if name in _HOME_OF:
        value = getattr(import_module(f".{_HOME_OF[name]}", __name__), name)
        globals()[name] = value
        return value
    if not name.startswith("_") and find_spec(f"{__name__}.{name}") is not None:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
