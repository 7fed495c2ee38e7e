"""Quality of a dual encoder, at retrieval and zero-shot classification, and its cost."""

from ._cost import latency, multiply_adds, parameters
from ._evaluate import costs, evaluate, save_evaluation
from ._models import ModelCheck, check_model, check_models, families_markdown, families_table, load_families
from ._open_clip import OpenClipModel
from ._retrieval import RetrievalResult, evaluate_retrieval
from ._zero_shot import ZeroShotResult, evaluate_zero_shot

__all__ = [
    "ModelCheck",
    "OpenClipModel",
    "RetrievalResult",
    "ZeroShotResult",
    "check_model",
    "check_models",
    "costs",
    "evaluate",
    "evaluate_retrieval",
    "evaluate_zero_shot",
    "families_markdown",
    "families_table",
    "latency",
    "load_families",
    "multiply_adds",
    "parameters",
    "save_evaluation",
]
