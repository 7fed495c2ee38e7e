"""``mope demo``: the shipped tiny CLIP pruned with MoPE and with Torch-Pruning's own criteria, side by side."""

from ._run import CRITERIA, LABELS, DemoResult, rich_table, run_demo

__all__ = ["CRITERIA", "LABELS", "DemoResult", "rich_table", "run_demo"]
