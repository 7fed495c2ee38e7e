"""Planning: from scores and a budget to the units that go."""

from ._budget import Amount, Budget, parse_amount, parts_of
from ._footprint import Footprint, footprints, latencies
from ._layers import LayerPlan, Reason
from ._make import make_plan
from ._plan import Plan
from ._range import PlanRange, plan_range

__all__ = [
    "Amount",
    "Budget",
    "Footprint",
    "LayerPlan",
    "Plan",
    "PlanRange",
    "Reason",
    "footprints",
    "latencies",
    "make_plan",
    "parse_amount",
    "parts_of",
    "plan_range",
]
