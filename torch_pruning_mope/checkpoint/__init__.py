"""Checkpoints of pruned models: JSON and safetensors, self-contained, checked to the last bit, and never a pickle."""

from ._checkpoint import is_checkpoint
from ._hub import HubMixin
from ._load import load, load_model

__all__ = ["HubMixin", "is_checkpoint", "load", "load_model"]
