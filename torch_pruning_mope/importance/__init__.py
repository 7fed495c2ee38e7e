"""Importances for Torch-Pruning: MoPE, and MoPE weighed with Torch-Pruning's own criteria.

Both score heads and FFN neurons over *all* layers at once and return numbers that are strictly ordered, with the best units
of each layer above all others, so that Torch-Pruning removes exactly the count it is asked for: it cuts all ties of a
threshold together, and silently spares a layer whose units all fall under it.
"""

from ._mope import MoPEImportance
from ._stock_scores import stock_scores
from ._unit import UnitImportance
from ._weighted import WeightedImportance

__all__ = ["MoPEImportance", "UnitImportance", "WeightedImportance", "stock_scores"]
