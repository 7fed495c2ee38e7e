"""Deployment: a faster form of a pruned model, and files for other runtimes."""

from ._export import export
from ._fold import fold
from ._latency import shipped_latencies

__all__ = ["export", "fold", "shipped_latencies"]
