"""Budgets of the rounds that lead to a budget."""

from collections.abc import Mapping
from typing import Literal

from ..encoder import TowerName
from ..planning import Budget, Footprint, parse_amount, parts_of

Spacing = Literal["geometric", "linear"]


def round_budget(
    budget: Budget,
    whole: Mapping[TowerName, Footprint],
    now: Mapping[TowerName, Footprint],
    place: int,
    rounds: int,
    spacing: Spacing,
    *,
    alone: bool,
) -> Budget | None:
    """Parameters that may be left after one round, in numbers.

    Args:
        budget: What may be left after all rounds.
        whole: Footprints of the model before the first.
        now: Footprints of the model as it is.
        place: Which round, from 1.
        rounds: How many there are.
        spacing: Whether every round leaves the same share, or removes the same number.
        alone: Whether nothing else makes the model smaller, so that the budget is met in the end; otherwise each round leaves
            the same share, or removes the same number, of what it finds.

    Returns:
        The budget; None if there is no more left than that.
    """
    found: dict[tuple[TowerName, ...], float] = {}
    for towers, amount in parts_of("budget", budget):
        total, left = (sum(sizes[tower].parameters for tower in towers) for sizes in (whole, now))
        goal = float(parse_amount("parameters", amount, total))
        if alone and place == rounds:
            target = goal
        elif spacing == "geometric":
            target = total * (goal / total) ** (place / rounds) if alone else left * (goal / total) ** (1 / rounds)
        else:
            target = total - (total - goal) * place / rounds if alone else left - (total - goal) / rounds
        if target < left:
            found[towers] = target
    if not found:
        return None
    return (
        {towers[0]: target for towers, target in found.items()} if isinstance(budget, Mapping) else found.popitem()[1]
    )
