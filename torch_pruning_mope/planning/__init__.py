"""Planning: from scores and a budget to the units that go."""

from ._footprint import Footprint, footprints, latencies
from ._make import Budget, make_plan, parse_amount
from ._plan import Plan, remove_units

__all__ = ["Budget", "Footprint", "Plan", "footprints", "latencies", "make_plan", "parse_amount", "remove_units"]
