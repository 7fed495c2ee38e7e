"""Stages of a compression: how much each may leave of what its budgets are of."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from ..cost import TOWERS
from ..planning import Limit, Sizes

Stages = Literal["auto"] | int | Sequence[float]

_AUTO = (0.5, 0.3, 0.2, 0.14, 0.1, 0.07, 0.05)
"""Shares of what can be removed that the stages leave; scores hold about as far as from one to the next."""
_APART = 1.2


def stage_limits(limits: Sequence[Limit], least: Sizes, stages: Stages) -> list[list[Limit]]:
    """The limits of every stage, the given ones last; ``least`` is the size of the smallest model."""
    goals = [max(0.0, (limit.most - limit.of(least)) / (limit.total - limit.of(least))) for limit in limits]
    shares = _shares(stages, min(goals))
    between = [[_eased(limit, limit.of(least), share) for limit in limits] for share in shares]
    return [*between, list(limits)]


def budgets_of(limits: Sequence[Limit], now: Sizes) -> dict[str, Any]:
    """Arguments of :func:`torch_pruning_mope.make_plan` for the limits that do not hold yet, as far as is known."""
    budgets: dict[str, Any] = {}
    for limit in limits:
        if limit.measure not in now or limit.of(now) > limit.most:
            if limit.towers == TOWERS:
                budgets[limit.measure] = limit.most
            else:
                budgets.setdefault(limit.measure, {})[limit.towers[0]] = limit.most
    return budgets


def _eased(limit: Limit, least: int | float, share: float) -> Limit:
    """A limit that leaves this share of what can be removed, if that is more."""
    return replace(limit, most=max(limit.most, least + share * (limit.total - least)))


def _shares(stages: Stages, goal: float) -> list[float]:
    """Shares between the whole and the goal, decreasing."""
    if stages == "auto":
        return [share for share in _AUTO if share > _APART * goal]
    if isinstance(stages, int) and not isinstance(stages, bool) and stages >= 1:
        return [math.exp(math.log(max(goal, 1e-3)) * place / stages) for place in range(1, stages)]
    if isinstance(stages, Sequence) and not isinstance(stages, str):
        shares = [share for share in stages if isinstance(share, float) and 0 < share < 1]
        if len(shares) == len(stages) and shares == sorted(set(shares), reverse=True):
            return [share for share in shares if share > goal]
    raise ValueError(
        f"stages must be 'auto', a number of at least 1, or decreasing shares between 0 and 1; found {stages!r}."
    )
