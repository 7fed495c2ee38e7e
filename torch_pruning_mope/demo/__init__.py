"""``mope demo``: the shipped tiny CLIP pruned with MoPE and with Torch-Pruning's own criteria, side by side."""

from ..evaluation import multiply_adds, parameters
from ..report import heat_maps
from ._criteria import CRITERIA
from ._finetune import fine_tune
from ._measure import Recalls, recalls
from ._report import rich_table, save_json
from ._row import Row, Stage
from ._run import DemoResult, run_demo

__all__ = [
    "CRITERIA",
    "DemoResult",
    "Recalls",
    "Row",
    "Stage",
    "fine_tune",
    "heat_maps",
    "multiply_adds",
    "parameters",
    "recalls",
    "rich_table",
    "run_demo",
    "save_json",
]
