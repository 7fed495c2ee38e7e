"""Planning: from scores and a budget to the units that go."""

from ._budget import Budget, Limit, Multiple, Sizes, limits_of, parse_amount, sizes_of
from ._layers import LayerPlan
from ._make import make_plan
from ._plan import Plan
from ._range import PlanRange, plan_range

__all__ = [
    "Budget",
    "LayerPlan",
    "Limit",
    "Multiple",
    "Plan",
    "PlanRange",
    "Sizes",
    "limits_of",
    "make_plan",
    "parse_amount",
    "plan_range",
    "sizes_of",
]
