"""Closed-form reconstruction of a pruned model from the model before: least squares, no labels, no gradients."""

from ._fit import LayerReport, ReconstructionReport
from ._reconstruct import reconstruct

__all__ = ["LayerReport", "ReconstructionReport", "reconstruct"]
