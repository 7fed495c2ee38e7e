"""From scores and a budget to a plan."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..encoder import DualEncoder, TowerName
from ..scoring import Score, ScoreTable, freed_parameters
from ._footprint import TOWERS, footprints, latencies
from ._order import removal_order
from ._plan import Plan, _weights, outcome

Amount = str | float | int
"""``"50%"``, a share below 1, or an absolute number, as ``8e9`` or ``"8G"``."""
Budget = Amount | Mapping[str, Amount]
"""For both towers together, or for each."""
Measure = Literal["parameters", "multiply_adds", "latency"]


@dataclass(frozen=True)
class _Limit:
    """What may be left of one measure in some towers."""

    measure: Measure
    towers: tuple[TowerName, ...]
    most: int | float


def make_plan(
    encoder: DualEncoder,
    table: ScoreTable,
    *,
    parameters: Budget | None = None,
    multiply_adds: Budget | None = None,
    latency: Budget | None = None,
    round_to: int = 1,
    min_heads: int = 0,
    min_neurons: int = 0,
    batch_size: int = 1,
) -> Plan:
    """Chooses the units to remove so that budgets hold and the metric loses least.

    Units go one after another, what loses least per parameter it frees first (per multiply-add, where that is the budget),
    until all budgets hold. What is left is counted, or timed, on copies from which units were really removed. A
    tower without a budget of its own is cut by the budget for both.

    Args:
        encoder: The dual encoder; left as it is.
        table: Scores of its units.
        parameters: How many parameters may be left, token embeddings not counted; of both towers together, or
            ``{"image": ..., "text": ...}``: a share (``"50%"``, ``0.5``) or a number (``"86M"``).
        multiply_adds: How many multiply-adds of one input, likewise.
        latency: How many seconds on this machine, likewise; measured, and so never exactly the same twice.
        round_to: Multiple that the neurons left in every MLP are of.
        min_heads: Heads that every attention keeps.
        min_neurons: Neurons that every MLP keeps.
        batch_size: Inputs at once, for latency.

    Returns:
        The plan.

    Raises:
        ValueError: If no budget is given, one is not understood, or cannot be met: the message says the least that can be
            left.
        WrongModelError: If the table is of other weights.
    """
    asked: dict[Measure, Budget | None] = {
        "parameters": parameters,
        "multiply_adds": multiply_adds,
        "latency": latency,
    }
    if all(budget is None for budget in asked.values()):
        raise ValueError("one of parameters, multiply_adds and latency must be given; found none.")
    if round_to < 1 or min_heads < 0 or min_neurons < 0:
        raise ValueError(
            f"round_to must be at least 1, min_heads and min_neurons at least 0; found {round_to}, {min_heads}, {min_neurons}."
        )
    weights = _weights(encoder)
    if weights is not None:
        table.check_weights(encoder.model)
    before = footprints(encoder)

    def size(of: DualEncoder) -> dict[Measure, Mapping[TowerName, int | float]]:
        found = footprints(of)
        measured: dict[Measure, Mapping[TowerName, int | float]] = {
            "parameters": {tower: footprint.parameters for tower, footprint in found.items()},
            "multiply_adds": {tower: footprint.multiply_adds for tower, footprint in found.items()},
        }
        return measured | ({} if latency is None else {"latency": latencies(of, batch_size=batch_size)})

    whole = size(encoder)
    limits = [
        limit for measure, budget in asked.items() if budget is not None for limit in _limits(measure, budget, whole)
    ]
    order = _allowed(
        encoder, removal_order(table, lambda unit: freed_parameters(encoder, unit), round_to), min_heads, min_neurons
    )
    towers = {tower for limit in limits for tower in limit.towers}
    chosen = _choose(encoder, [score for score in order if score.unit.tower in towers], limits, size)
    smaller, after = outcome(encoder, [score.unit for score in chosen])
    settings: dict[str, Any] = {
        "metric": table.metric,
        "interaction": table.settings.get("interaction"),
        "budgets": {measure: dict(b) if isinstance(b, Mapping) else b for measure, b in asked.items() if b is not None},
        "round_to": round_to,
        "min_heads": min_heads,
        "min_neurons": min_neurons,
    }
    if latency is not None:
        settings["latency"] = {"before": dict(whole["latency"]), "after": latencies(smaller, batch_size=batch_size)}
    loss = sum(score.value for score in chosen)
    return Plan(tuple(score.unit for score in chosen), before, after, loss, weights, settings)


def _limits(measure: Measure, budget: Budget, whole: Mapping[Measure, Mapping[TowerName, int | float]]) -> list[_Limit]:
    own = whole[measure]
    if isinstance(budget, Mapping):
        if not budget or set(budget) - set(TOWERS):
            raise ValueError(f"{measure} must be for image, text or both; found {dict(budget)!r}.")
        parts: list[tuple[tuple[TowerName, ...], Amount]] = [((t,), budget[t]) for t in TOWERS if t in budget]
    else:
        parts = [(TOWERS, budget)]
    limits = []
    for towers, amount in parts:
        total = sum(own[tower] for tower in towers)
        most = parse_amount(measure, amount, total)
        if not 0 < most < total:
            raise ValueError(f"{measure} must be less than the {total:.4g} that there are; found {amount!r}.")
        limits.append(_Limit(measure, towers, most))
    return limits


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


def _allowed(encoder: DualEncoder, order: Sequence[Score], min_heads: int, min_neurons: int) -> list[Score]:
    """The order without what would leave too little."""
    left: dict[tuple[str, int, str], int] = {}
    least: dict[str, int] = {}
    for layer in encoder.layers:
        for kind, units in (("head", layer.block.attention), ("neurons", layer.block.feed_forward)):
            if units is not None:
                left[layer.tower, layer.index, kind] = units.channels
                own = {"head": min_heads * units.unit_size, "neurons": min_neurons}[kind]
                least[f"{layer.tower} {layer.index} {kind}"] = max(own, 0 if units.can_be_empty else units.unit_size)
    kept, blocks = [], {name: len(tower.blocks) for name, tower in encoder.towers.items()}
    for score in order:
        unit = score.unit
        if unit.kind == "block":
            if blocks[unit.tower] > 1:
                blocks[unit.tower] -= 1
                kept.append(score)
            continue
        key = (unit.tower, unit.layer, unit.part)
        gone = (
            len(unit.channels) if unit.kind in {"head", "neurons"} else left[key]
        )  # heads may have gone before the rest
        if left[key] - gone >= least[f"{unit.tower} {unit.layer} {unit.part}"]:
            left[key] -= gone
            kept.append(score)
    return kept


def _choose(
    encoder: DualEncoder,
    order: Sequence[Score],
    limits: Sequence[_Limit],
    size: Callable[[DualEncoder], Mapping[Measure, Mapping[TowerName, int | float]]],
) -> list[Score]:
    """The shortest beginning of the order, tower by tower where limits are, that meets all limits."""

    def excess(chosen: Sequence[Score]) -> dict[_Limit, int | float]:
        """The limits that do not hold, each with what there is."""
        left = size(outcome(encoder, [score.unit for score in chosen])[0])
        found = {limit: sum(left[limit.measure][tower] for tower in limit.towers) for limit in limits}
        return {limit: amount for limit, amount in found.items() if amount > limit.most}

    if failing := excess(order):
        least = {limit.measure: amount for limit, amount in failing.items()}
        said = ", ".join(f"{measure} of at least {amount:.4g}" for measure, amount in least.items())
        raise ValueError(
            f"budgets must leave {said}, the least that can be reached with the units of this table; found "
            f"{', '.join(f'{limit.most:.4g} for {limit.measure}' for limit in failing)}. Allow more, or score more kinds."
        )
    chosen: list[Score] = []
    for towers in dict.fromkeys(limit.towers for limit in sorted(limits, key=lambda limit: len(limit.towers))):
        own = [limit for limit in limits if set(limit.towers) <= set(towers)]
        rest = [score for score in order if score.unit.tower in towers and score not in chosen]
        low, high = 0, len(rest)
        while low < high:
            middle = (low + high) // 2
            if any(limit in own for limit in excess([*chosen, *rest[:middle]])):
                low = middle + 1
            else:
                high = middle
        chosen += rest[:low]
    taken = {id(score) for score in chosen}
    return [score for score in order if id(score) in taken]
