"""Planning: from scores and a budget to the units that go."""

from ._budget import Amount, Budget, Limit, Sizes, limits_of, parse_amount, parts_of
from ._footprint import TOWERS, Footprint, footprints, latencies
from ._layers import LayerPlan, Reason
from ._make import make_plan
from ._plan import Plan
from ._range import PlanRange, plan_range, sizes_of
from ._rounding import Multiple

__all__ = [
    "TOWERS",
    "Amount",
    "Budget",
    "Footprint",
    "LayerPlan",
    "Limit",
    "Multiple",
    "Plan",
    "PlanRange",
    "Reason",
    "Sizes",
    "footprints",
    "latencies",
    "limits_of",
    "make_plan",
    "parse_amount",
    "parts_of",
    "plan_range",
    "sizes_of",
]
