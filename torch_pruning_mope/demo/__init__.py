"""``mope demo``: the shipped tiny CLIP pruned with MoPE and with Torch-Pruning's own criteria, side by side."""

from ._criteria import CRITERIA, LABELS
from ._run import DemoResult, run_demo
from ._table import rich_table

__all__ = ["CRITERIA", "LABELS", "DemoResult", "rich_table", "run_demo"]
