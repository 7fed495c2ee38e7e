"""What becomes of a pruned model in use: its deployment form, and files for other runtimes."""

from ._export import export
from ._fold import fold

__all__ = ["export", "fold"]
