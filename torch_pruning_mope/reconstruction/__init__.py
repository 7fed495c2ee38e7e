"""Closed-form reconstruction of a pruned model from the model before: least squares, no labels, no gradients."""

from ._reconstruct import reconstruct
from ._report import LayerReport, ReconstructionReport

__all__ = ["LayerReport", "ReconstructionReport", "reconstruct"]
