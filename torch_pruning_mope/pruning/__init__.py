"""Pruning: the request in ratios and in counts, Torch-Pruning's pruner run on it, and removal of given units."""

from ..towers import Counts
from ._arguments import PrunerMixin
from ._prune import prune
from ._remove import cut, remove_units
from ._request import round_to_of

__all__ = [
    "Counts",
    "PrunerMixin",
    "cut",
    "prune",
    "remove_units",
    "round_to_of",
]
