"""Runs exported models by onnxruntime, NumPy and Pillow alone; nothing here imports torch."""

from ._exported import DEPLOYMENT, ExportedModel, load_exported
from ._images import Preprocess
from ._tokens import Tokenizer

__all__ = ["DEPLOYMENT", "ExportedModel", "Preprocess", "Tokenizer", "load_exported"]
