"""Cost of a model, of a call, of a unit: parameters, multiply-adds, seconds. One counter, one timer."""

from ._footprint import TOWERS, Footprint, footprints, freed_multiply_adds, freed_parameters, latencies, median_seconds
from ._multiply_adds import count_multiply_adds

__all__ = [
    "TOWERS",
    "Footprint",
    "count_multiply_adds",
    "footprints",
    "freed_multiply_adds",
    "freed_parameters",
    "latencies",
    "median_seconds",
]
