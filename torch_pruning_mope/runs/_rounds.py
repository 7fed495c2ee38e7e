"""Budgets: those that can be met, and those of the rounds that lead to them."""

from collections.abc import Mapping
from functools import partial
from typing import Literal

from ..cost import Footprint
from ..dual_encoder import DualEncoder
from ..encoder import TowerName
from ..planning import Budget, parse_amount, parts_of, plan_range

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
    """Parameters that may be left after one round, in numbers."""
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


def check_budgets(
    encoder: DualEncoder,
    width: Budget | None,
    parameters: Budget | None,
    *,
    groups: int,
    round_to: int,
    uniform: bool,
) -> None:
    """Raises unless budgets can be met, as far as is known before anything is scored."""
    if width is None and parameters is None:
        raise ValueError("width or parameters must be given; found neither. Say how many parameters may be left.")
    reachable = partial(plan_range, encoder, groups=groups, round_to=round_to, uniform=uniform)
    if width is not None:
        reachable(kinds=("head", "neurons")).check(parameters=width)
    if parameters is None:
        return
    found = reachable(kinds=("block",) if width is None else ("head", "neurons", "block"))
    found.check(parameters=parameters)
    if width is None:
        return
    before, after = (dict(parts_of("parameters", budget)) for budget in (width, parameters))
    for towers in before.keys() & after.keys():
        total = sum(found.largest[tower].parameters for tower in towers)
        least, most = (parse_amount("parameters", budget[towers], total) for budget in (after, before))
        if least >= most:
            raise ValueError(
                f"parameters must be less than width, so that layers go after heads and neurons; found {least:.4g} and "
                f"{most:.4g}. Leave parameters out to keep all layers."
            )
