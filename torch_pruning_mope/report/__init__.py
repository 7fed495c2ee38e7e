"""A run as one HTML page and figures."""

from ._changed import Candidate, ChangedExamples, Example, changed_examples
from ._heat_maps import heat_maps
from ._write import write_report

__all__ = [
    "Candidate",
    "ChangedExamples",
    "Example",
    "changed_examples",
    "heat_maps",
    "write_report",
]
