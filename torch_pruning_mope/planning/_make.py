"""From scores and a budget to a plan."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..encoder import EncoderCore, TowerName
from ..scoring import ScoreTable, Unit
from ._budget import Budget, Limit, Measure, Sizes, limits_of
from ._choose import allowed, put_back, shortest
from ._cost import multiply_add_cost, parameter_cost
from ._footprint import Footprint, footprints, latencies
from ._layers import Reason, layer_plans
from ._order import Cost, Step, removal_order
from ._plan import Plan, outcome, weights_of
from ._range import sizes_of
from ._rounding import Multiple, multiple_of


def make_plan(
    encoder: EncoderCore,
    table: ScoreTable,
    *,
    parameters: Budget | None = None,
    multiply_adds: Budget | None = None,
    latency: Budget | None = None,
    round_to: Multiple = 1,
    uniform: bool = False,
    min_heads: int = 0,
    min_neurons: int = 0,
    refill: bool = True,
    batch_size: int = 1,
) -> Plan:
    """Chooses the units to remove so that budgets hold and the metric loses least.

    Units go one after another, what loses least per parameter it frees first (per multiply-add, where no budget is of
    parameters), until all budgets hold. The last may free more than is needed, so what still fits is put back then. What is
    left is counted, or timed, on copies from which units were really removed. A tower without a budget of its own is cut by
    the budget for both.

    Args:
        encoder: The dual encoder; left as it is.
        table: Scores of its units.
        parameters: How many parameters may be left, token embeddings not counted; of both towers together, or
            ``{"image": ..., "text": ...}``: a share (``"50%"``, ``0.5``) or a number (``"86M"``).
        multiply_adds: How many multiply-adds of one input, likewise.
        latency: How many seconds on this machine, likewise; measured, and so never exactly the same twice.
        round_to: Multiple that the neurons left in every MLP are of; ``"auto"`` for what suits the model's device
            (16 on CPUs, 64 on GPUs, less for small MLPs).
        uniform: Whether every layer of a tower loses as many heads, and as many neurons; which ones is a matter of the layer.
            Layers that kept equal numbers so far go on doing so, as stock architectures need it.
        min_heads: Heads that every attention keeps.
        min_neurons: Neurons that every MLP keeps.
        refill: Whether to put back what fits, the last that went first; never for a budget of time.
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
    multiple = multiple_of(encoder, round_to)
    if min_heads < 0 or min_neurons < 0:
        raise ValueError(f"min_heads and min_neurons must be at least 0; found {min_heads}, {min_neurons}.")
    counted = _Counted(encoder, batch_size=None if latency is None else batch_size)
    limits = limits_of(asked, counted([]))
    weights = weights_of(encoder)
    if weights is not None:
        table.check_weights(encoder.model)
    costs: dict[Measure, Cost] = {"parameters": parameter_cost(encoder)}
    if multiply_adds is not None or latency is not None:
        costs["multiply_adds"] = multiply_add_cost(encoder, counted.footprints(()))
    by: Measure = "multiply_adds" if parameters is None else "parameters"
    order = _order(encoder, table, costs[by], multiple, min_heads, min_neurons, uniform=uniform)
    chosen = _chosen(order, limits, counted, costs, refill=refill)
    settings: dict[str, Any] = {
        "metric": table.metric,
        "interaction": table.settings.get("interaction"),
        "budgets": {measure: dict(b) if isinstance(b, Mapping) else b for measure, b in asked.items() if b is not None},
        "round_to": multiple,
        "uniform": uniform,
        "min_heads": min_heads,
        "min_neurons": min_neurons,
        "cost": by,
        "unused": _unused(chosen, limits, counted),
    }
    units = tuple(score.unit for step in chosen for score in step)
    if latency is not None:
        settings["latency"] = {side: dict(counted(u)["latency"]) for side, u in (("before", ()), ("after", units))}
    reasons = _reasons(order, chosen, costs[by])
    return Plan(
        units,
        counted.footprints(()),
        counted.footprints(units),
        sum(reason.value for reason in reasons),
        weights,
        settings,
        reasons,
        layer_plans(encoder, units, reasons),
    )


def _order(
    encoder: EncoderCore,
    table: ScoreTable,
    cost: Cost,
    round_to: int,
    min_heads: int,
    min_neurons: int,
    *,
    uniform: bool,
) -> list[Step]:
    """The steps that may be taken, in their order."""
    order = removal_order(table, cost, round_to, uniform=uniform)
    kept = allowed(encoder, order, min_heads, min_neurons)
    staying = {step[0].unit for step in order if step[0].unit.kind == "block"} - {step[0].unit for step in kept}
    if staying:  # a tower's last block: its parts may go, which would have gone with it
        rest = replace(table, scores=tuple(score for score in table.scores if score.unit not in staying))
        kept = allowed(encoder, removal_order(rest, cost, round_to, uniform=uniform), min_heads, min_neurons)
    return kept


def _chosen(
    order: Sequence[Step], limits: Sequence[Limit], counted: "_Counted", costs: Mapping[Measure, Cost], *, refill: bool
) -> list[Step]:
    """The steps that go."""
    towers = {tower for limit in limits for tower in limit.towers}
    order = [step for step in order if step[0].unit.tower in towers]
    chosen = shortest(order, limits, counted, costs)
    if refill and all(limit.measure != "latency" for limit in limits):
        return put_back(chosen, limits, counted, costs)
    return chosen


def _unused(chosen: Sequence[Step], limits: Sequence[Limit], counted: "_Counted") -> list[dict[str, Any]]:
    """How much less is left than each budget allows."""
    sizes = counted([score.unit for step in chosen for score in step])
    return [
        {"measure": limit.measure, "towers": list(limit.towers), "amount": limit.most - limit.of(sizes)}
        for limit in limits
    ]


def _reasons(order: Sequence[Step], chosen: Sequence[Step], cost: Cost) -> tuple[Reason, ...]:
    ranks = {id(step): rank for rank, step in enumerate(order, 1)}
    return tuple(
        Reason(
            score.value, score.stderr if math.isfinite(score.stderr) else None, float(cost(score.unit)), ranks[id(step)]
        )
        for step in chosen
        for score in step
    )


class _Counted:
    """What is left of a model without some units, counted once for each choice of units.

    Args:
        encoder: The whole model's.
        batch_size: Inputs at once for latencies; None for none.
    """

    def __init__(self, encoder: EncoderCore, batch_size: int | None) -> None:
        self._encoder, self._batch_size = encoder, batch_size
        self._found: dict[tuple[Unit, ...], tuple[Mapping[TowerName, Footprint], Sizes]] = {}

    def __call__(self, units: Sequence[Unit]) -> Sizes:
        return self._measured(tuple(units))[1]

    def footprints(self, units: Sequence[Unit]) -> Mapping[TowerName, Footprint]:
        """Of each tower."""
        return self._measured(tuple(units))[0]

    def _measured(self, units: tuple[Unit, ...]) -> tuple[Mapping[TowerName, Footprint], Sizes]:
        if units not in self._found:
            encoder = self._encoder
            if units:  # the graph of one copy is checked for all
                smaller, found = outcome(encoder, units, checked=not any(self._found))
            else:
                smaller, found = encoder, footprints(encoder)
            seconds = {} if self._batch_size is None else latencies(smaller, batch_size=self._batch_size)
            self._found[units] = found, sizes_of(found, seconds)
        return self._found[units]
