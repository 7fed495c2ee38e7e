"""Greedy scoring: the unit that the metric misses least goes first, then the next, each scored without those gone before.

Single removals are not additive: two heads that stand in for each other both look useless. (Not in the paper.)
"""

from collections.abc import Callable, Sequence

from ._loss import Loss
from ._meter import Meter
from ._units import Ablation


def greedy_path(
    meter: Meter,
    ablations: Sequence[Ablation],
    *,
    lazy: bool = True,
    evaluated: Callable[[Ablation], object] = lambda _: None,
    removed: Callable[[Ablation, Loss], object] = lambda *_: None,
) -> list[tuple[Ablation, Loss]]:
    """All ablations in the order in which they go, each with the loss once it and those before it are gone.

    Args:
        meter: What measures them; reset before and after.
        ablations: The candidates, of both towers if need be.
        lazy: Re-evaluate only the candidate whose last increment is lowest, until the lowest is fresh (Minoux 1978; exact
            where increments only grow along the path). False evaluates all candidates at every step.
        evaluated: Called after each evaluation.
        removed: Called after each removal.

    Returns:
        The path; an order, so that one pass serves every ratio.
    """
    meter.reset()
    path: list[tuple[Ablation, Loss]] = []

    def losses(candidates: Sequence[Ablation]) -> dict[Ablation, Loss]:
        found = {}
        for ablation, loss in meter.losses(candidates):
            found[ablation] = loss
            evaluated(ablation)
        return found

    fresh = losses(ablations)
    increments = {ablation: loss.value for ablation, loss in fresh.items()}
    while increments:
        done = path[-1][1].value if path else 0.0
        lowest = min(increments, key=increments.__getitem__)
        while lowest not in fresh:
            found = losses([lowest] if lazy else list(increments))
            fresh |= found
            increments |= {ablation: loss.value - done for ablation, loss in found.items()}
            lowest = min(increments, key=increments.__getitem__)
        path.append((lowest, fresh[lowest]))
        del increments[lowest]
        fresh = {}
        if increments:
            meter.remove(lowest)
        removed(*path[-1])
    meter.reset()
    return path
