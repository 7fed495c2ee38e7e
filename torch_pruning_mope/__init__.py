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
    from .data import (
        Pairs,
        emoji_pairs,
        emoji_scenes,
        gather_pairs,
        load_tiny_clip,
        open_labelled,
        open_pairs,
        split_pairs,
    )
    from .deploy import export, fold
    from .distillation import DistillationLoss, TeacherCache, distil, distill
    from .dual_encoder import DualEncoder
    from .errors import MopeError
    from .evaluation import check_model, evaluate, evaluate_retrieval, evaluate_zero_shot, save_evaluation
    from .importance import MoPEImportance, WeightedImportance, stock_scores
    from .planning import Plan, make_plan, plan_range
    from .pruning import Counts, prune, remove_units
    from .reconstruction import reconstruct
    from .report import write_report
    from .runs import compress, finetune_stage, pretrain_stage, run_stage
    from .runtime import load_exported
    from .scoring import ScoreTable, calibration_guidance, estimate_cost, score
    from .surgery import register_attention
    from .towers import register_channels, register_towers

__all__ = [
    "Counts",
    "DistillationLoss",
    "DualEncoder",
    "MoPEImportance",
    "MopeError",
    "Pairs",
    "Plan",
    "ScoreTable",
    "TeacherCache",
    "WeightedImportance",
    "__version__",
    "calibration_guidance",
    "check_model",
    "compress",
    "distil",
    "distill",
    "emoji_pairs",
    "emoji_scenes",
    "estimate_cost",
    "evaluate",
    "evaluate_retrieval",
    "evaluate_zero_shot",
    "export",
    "finetune_stage",
    "fold",
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
    "split_pairs",
    "stock_scores",
    "write_report",
]

_HOMES = {
    "checkpoint": "load load_model",
    "data": "Pairs emoji_pairs emoji_scenes gather_pairs load_tiny_clip open_labelled open_pairs split_pairs",
    "deploy": "export fold",
    "distillation": "DistillationLoss TeacherCache distil distill",
    "dual_encoder": "DualEncoder",
    "errors": "MopeError",
    "evaluation": "check_model evaluate evaluate_retrieval evaluate_zero_shot save_evaluation",
    "importance": "MoPEImportance WeightedImportance stock_scores",
    "planning": "Plan make_plan plan_range",
    "pruning": "Counts prune remove_units",
    "reconstruction": "reconstruct",
    "report": "write_report",
    "runs": "compress finetune_stage pretrain_stage run_stage",
    "runtime": "load_exported",
    "scoring": "ScoreTable calibration_guidance estimate_cost score",
    "surgery": "register_attention",
    "towers": "register_channels register_towers",
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
