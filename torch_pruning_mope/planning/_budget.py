"""Budgets: how much may be left of a model, as people write it and as numbers."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from ..cost import TOWERS
from ..encoder import TowerName
from ._sizes import Measure, Sizes

Amount = str | float | int
"""``"50%"``, a share below 1, or an absolute number, as ``8e9`` or ``"8G"``."""
Budget = Amount | Mapping[str, Amount]
"""For both towers together, or for each."""


@dataclass(frozen=True)
class Limit:
    """The most that may be left of one measure in some towers together, as asked and as a number."""

    measure: Measure
    towers: tuple[TowerName, ...]
    most: int | float
    asked: Amount
    total: int | float

    def of(self, sizes: Sizes) -> int | float:
        """The measure's sum over the towers."""
        return sum(sizes[self.measure][tower] for tower in self.towers)

    def __str__(self) -> str:
        return self.measure if self.towers == TOWERS else f"{self.measure} of the {self.towers[0]} tower"


def limits_of(budgets: Mapping[Measure, Budget | None], whole: Sizes) -> list[Limit]:
    """Budgets as limits, one for each number; ``whole`` is the size of the whole model."""
    given = {measure: budget for measure, budget in budgets.items() if budget is not None}
    if not given:
        raise ValueError("one of parameters, multiply_adds and latency must be given; found none.")
    limits = []
    for measure, budget in given.items():
        for towers, amount in parts_of(measure, budget):
            total = sum(whole[measure][tower] for tower in towers)
            most = parse_amount(measure, amount, total)
            if not 0 < most < total:
                raise ValueError(
                    f"{measure} must be less than the {in_unit_of(amount, total, total)} that there are; found {amount!r}."
                )
            limits.append(Limit(measure, towers, most, amount, total))
    return limits


def parts_of(measure: str, budget: Budget) -> list[tuple[tuple[TowerName, ...], Amount]]:
    """The towers that a budget is for, together or each, with the amount."""
    if not isinstance(budget, Mapping):
        return [(TOWERS, budget)]
    if not budget or set(budget) - set(TOWERS):
        raise ValueError(f"{measure} must be for image, text or both; found {dict(budget)!r}.")
    return [((tower,), budget[tower]) for tower in TOWERS if tower in budget]


def unreachable(failing: Mapping[Limit, int | float], where: str) -> str:
    """The message for limits that cannot be met, given the least that can be left; in the units that were asked for."""
    least = ", ".join(
        f"{limit} of at least {in_unit_of(limit.asked, low, limit.total)}" for limit, low in failing.items()
    )
    asked = ", ".join(f"{limit.asked!r} for {limit}" for limit in failing)
    return (
        f"budgets must leave {least}, the least that can be reached {where}; found {asked}. Allow more, or let more kinds of "
        "units go."
    )


_SUFFIXES = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "ms": 1e-3, "s": 1.0}
_AMOUNT = re.compile(r"\s*(\d+(?:\.\d+)?(?:e\d+)?)\s*(%|ms|s|[KMGT])?(?:FLOPs|MACs|B)?\s*", re.IGNORECASE)


def parse_amount(name: str, amount: Amount, total: int | float) -> int | float:
    """An amount as a number."""
    if isinstance(amount, str):
        found = _AMOUNT.fullmatch(amount)
        if found is None:
            raise ValueError(f"{name} must be an amount such as '50%', 0.5, 86e6 or '86M'; found {amount!r}.")
        suffix = _suffix(found)
        return float(found[1]) / 100 * total if suffix == "%" else float(found[1]) * _SUFFIXES[suffix]
    if isinstance(amount, bool) or amount <= 0:
        raise ValueError(f"{name} must be an amount such as '50%', 0.5, 86e6 or '86M'; found {amount!r}.")
    return amount * total if amount < 1 and name != "latency" else float(amount)


def in_unit_of(asked: Amount, number: int | float, total: int | float) -> str:
    """A number in the unit of an amount, rounded up, so that it serves as a budget."""
    found = _AMOUNT.fullmatch(asked) if isinstance(asked, str) else None
    if found is not None and (suffix := _suffix(found)):
        share = suffix == "%"
        return f"{_up(100 * number / total if share else number / _SUFFIXES[suffix], 1 if share else 3)}{suffix}"
    if isinstance(asked, float) and asked < 1 and number > 1:
        return _up(number / total, 3)
    return _up(number, 0 if number >= 1000 else 6)


def _suffix(found: re.Match[str]) -> str:
    suffix = found[2] or ""
    return suffix.lower() if suffix.lower() in {"ms", "s"} else suffix.upper()


def _up(number: int | float, digits: int) -> str:
    """Rounded up to so many digits after the point."""
    scale = 10**digits
    text = f"{math.ceil(number * scale * (1 - 1e-12)) / scale:.{digits}f}"
    return text.rstrip("0").rstrip(".") if digits else text
