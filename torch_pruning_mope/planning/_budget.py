"""Budgets: what may be left of a model, as people write it and as numbers."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ..encoder import TowerName
from ._footprint import TOWERS

Amount = str | float | int
"""``"50%"``, a share below 1, or an absolute number, as ``8e9`` or ``"8G"``."""
Budget = Amount | Mapping[str, Amount]
"""For both towers together, or for each."""
Measure = Literal["parameters", "multiply_adds", "latency"]
Sizes = Mapping[Measure, Mapping[TowerName, int | float]]
"""What a model takes, by measure and tower."""


@dataclass(frozen=True)
class Limit:
    """What may be left of one measure in some towers.

    Attributes:
        measure: The measure.
        towers: The towers, together.
        most: The number.
    """

    measure: Measure
    towers: tuple[TowerName, ...]
    most: int | float

    def of(self, sizes: Sizes) -> int | float:
        """What there is of it."""
        return sum(sizes[self.measure][tower] for tower in self.towers)


def limits_of(budgets: Mapping[Measure, Budget | None], whole: Sizes) -> list[Limit]:
    """Budgets as limits.

    Args:
        budgets: By measure; None for none.
        whole: What the whole model takes.

    Returns:
        A limit for each number.

    Raises:
        ValueError: If none is given, or one is not understood, or not less than there is.
    """
    given = {measure: budget for measure, budget in budgets.items() if budget is not None}
    if not given:
        raise ValueError(f"one of {', '.join(budgets)} must be given; found none.".replace(", latency", " and latency"))
    limits = []
    for measure, budget in given.items():
        for towers, amount in parts_of(measure, budget):
            total = sum(whole[measure][tower] for tower in towers)
            most = parse_amount(measure, amount, total)
            if not 0 < most < total:
                raise ValueError(f"{measure} must be less than the {total:.4g} that there are; found {amount!r}.")
            limits.append(Limit(measure, towers, most))
    return limits


def parts_of(measure: str, budget: Budget) -> list[tuple[tuple[TowerName, ...], Amount]]:
    """The towers that a budget is for, each or together, with the amount.

    Args:
        measure: What it is of, for the message.
        budget: The budget.

    Returns:
        Towers and amounts.

    Raises:
        ValueError: If it names no tower, or one that there is not.
    """
    if not isinstance(budget, Mapping):
        return [(TOWERS, budget)]
    if not budget or set(budget) - set(TOWERS):
        raise ValueError(f"{measure} must be for image, text or both; found {dict(budget)!r}.")
    return [((tower,), budget[tower]) for tower in TOWERS if tower in budget]


def unreachable(failing: Mapping[Limit, int | float], where: str) -> str:
    """The message for limits that cannot be met.

    Args:
        failing: The least that can be left, by limit.
        where: What was to be removed.

    Returns:
        The message.
    """
    least = ", ".join(f"{limit.measure} of at least {amount:.4g}{_whose(limit)}" for limit, amount in failing.items())
    asked = ", ".join(f"{limit.most:.4g} for {limit.measure}{_whose(limit)}" for limit in failing)
    return (
        f"budgets must leave {least}, the least that can be reached {where}; found {asked}. Allow more, or let more kinds of "
        "units go."
    )


def _whose(limit: Limit) -> str:
    return "" if limit.towers == TOWERS else f" of the {limit.towers[0]} tower"


_SUFFIXES = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "ms": 1e-3, "s": 1.0}


def parse_amount(name: str, amount: Amount, total: int | float) -> int | float:
    """An amount as a number.

    Args:
        name: What it is for.
        amount: A share of ``total`` (``"50%"``, ``0.5``), or a number (``86e6``, ``"86M"``, ``"20ms"``).
        total: What there is.

    Returns:
        The number.

    Raises:
        ValueError: If it is not understood.
    """
    if isinstance(amount, str):
        found = re.fullmatch(
            r"\s*(\d+(?:\.\d+)?(?:e\d+)?)\s*(%|ms|s|[KMGT])?(?:FLOPs|MACs|B)?\s*", amount, re.IGNORECASE
        )
        if found is None:
            raise ValueError(f"{name} must be an amount such as '50%', 0.5, 86e6 or '86M'; found {amount!r}.")
        suffix = found[2] or ""
        if suffix == "%":
            return float(found[1]) / 100 * total
        return float(found[1]) * _SUFFIXES[suffix if suffix in {"ms", "s"} else suffix.upper()]
    if isinstance(amount, bool) or amount <= 0:
        raise ValueError(f"{name} must be an amount such as '50%', 0.5, 86e6 or '86M'; found {amount!r}.")
    return amount * total if amount < 1 and name != "latency" else float(amount)
