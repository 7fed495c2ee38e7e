"""From scores and a budget to a plan."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

from ..cost import freed_multiply_adds, freed_parameters, latencies
from ..encoder import EncoderCore
from ..scoring import ScoreTable
from ._budget import Budget, Limit, Measure, Measured, Multiple, Timer, limits_of, multiple_of
from ._choose import allowed, put_back, shortest
from ._layers import layer_plans
from ._order import Freed, Step, removal_order
from ._plan import Plan, weights_of


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
    timer: Timer = latencies,
) -> Plan:
    """Chooses the units to remove so that budgets hold and the metric loses least.

    Units go one after another, what loses least per parameter it frees first (per multiply-add, where no budget is of
    parameters), until all budgets hold. The last may free more than is needed, so what still fits is put back then. What is
    left is counted, or timed, on copies from which units were really removed. A tower without a budget of its own is cut by
    the budget for both.

    Args:
        encoder: The dual encoder; left as it is.
        table: Scores of its units.
        parameters: Parameters that may be left, token embeddings not counted; of both towers together, or
            ``{"image": ..., "text": ...}``: a share (``"50%"``, ``0.5``) or a number (``"86M"``).
        multiply_adds: Multiply-adds of one input, likewise.
        latency: Seconds on this machine, likewise; measured, and so never exactly the same twice.
        round_to: Multiple that the neurons left in every MLP are of; ``"auto"`` for what suits the model's device
            (16 on CPUs, 64 on GPUs, less for small MLPs).
        uniform: Every layer of a tower loses as many heads, and as many neurons; which ones is a matter of the layer.
            Layers that kept equal numbers so far go on doing so, as stock architectures need it.
        min_heads: Heads that every attention keeps.
        min_neurons: Neurons that every MLP keeps.
        refill: Put back what fits, the last that went first; never for a budget of time.
        batch_size: Inputs at once, for latency.
        timer: Measures it; by default of the model as it is. ``deploy.shipped_latencies`` measures exported files.

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
    counted = Measured(encoder, None if latency is None else partial(timer, batch_size=batch_size))
    limits = limits_of(asked, counted([]))
    weights = weights_of(encoder)
    if weights is not None:
        table.check_weights(encoder.model)
    freed: dict[Measure, Freed] = {"parameters": cache(partial(freed_parameters, encoder))}
    if multiply_adds is not None or latency is not None:
        freed["multiply_adds"] = freed_multiply_adds(encoder, counted.footprints(()))
    by: Measure = "multiply_adds" if parameters is None else "parameters"
    order = _order(encoder, table, freed[by], multiple, min_heads, min_neurons, uniform=uniform)
    chosen = _chosen(order, limits, counted, freed, refill=refill)
    settings: dict[str, Any] = {
        "metric": table.metric,
        "interaction": table.settings.get("interaction"),
        "budgets": {measure: dict(b) if isinstance(b, Mapping) else b for measure, b in asked.items() if b is not None},
        "round_to": multiple,
        "uniform": uniform,
        "min_heads": min_heads,
        "min_neurons": min_neurons,
        "loss_per": by,
        "unused": _unused(chosen, limits, counted),
    }
    scores = tuple(
        score if score.parameters is not None else replace(score, parameters=freed_parameters(encoder, score.unit))
        for step in chosen
        for score in step
    )
    units = tuple(score.unit for score in scores)
    if latency is not None:
        settings["latency"] = {side: dict(counted(u)["latency"]) for side, u in (("before", ()), ("after", units))}
    before, after = counted.footprints(()), counted.footprints(units)
    return Plan(scores, before, after, weights, settings, layer_plans(encoder, scores))


def _order(
    encoder: EncoderCore,
    table: ScoreTable,
    freed: Freed,
    round_to: int,
    min_heads: int,
    min_neurons: int,
    *,
    uniform: bool,
) -> list[Step]:
    """The steps that may be taken, in their order."""
    order = removal_order(table, freed, round_to, uniform=uniform)
    kept = allowed(encoder, order, min_heads, min_neurons)
    staying = {step[0].unit for step in order if step[0].unit.kind == "block"} - {step[0].unit for step in kept}
    if staying:  # a tower's last block: its parts may go, which would have gone with it
        rest = replace(table, scores=tuple(score for score in table.scores if score.unit not in staying))
        kept = allowed(encoder, removal_order(rest, freed, round_to, uniform=uniform), min_heads, min_neurons)
    return kept


def _chosen(
    order: Sequence[Step], limits: Sequence[Limit], counted: Measured, freed: Mapping[Measure, Freed], *, refill: bool
) -> list[Step]:
    """The steps that go."""
    towers = {tower for limit in limits for tower in limit.towers}
    order = [step for step in order if step[0].unit.tower in towers]
    chosen = shortest(order, limits, counted, freed)
    if refill and all(limit.measure != "latency" for limit in limits):
        return put_back(chosen, limits, counted, freed)
    return chosen


def _unused(chosen: Sequence[Step], limits: Sequence[Limit], counted: Measured) -> list[dict[str, Any]]:
    """Amounts that each budget allows beyond what is left."""
    sizes = counted([score.unit for step in chosen for score in step])
    return [
        {"measure": limit.measure, "towers": list(limit.towers), "amount": limit.most - limit.of(sizes)}
        for limit in limits
    ]
