"""The numbers that a report begins with."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..planning import Plan
from ._evaluation import Evaluation, by_data, models_of, own_criterion
from ._format import MEASURES, amount, change


@dataclass(frozen=True)
class Card:
    """One headline number.

    Attributes:
        name: What it is.
        value: After everything.
        before: What it was before.
        change: By how much it changed, in words.
        note: What else there is to say.
    """

    name: str
    value: str
    before: str = ""
    change: str = ""
    note: str = ""


def cards_of(rows: Sequence[Evaluation], plan: Plan | None) -> list[Card]:
    """The headline numbers, as far as there are any.

    Args:
        rows: The evaluation.
        plan: The plan, whose own counts stand in where nothing was evaluated.

    Returns:
        The cards.
    """
    rows = next((own for own in by_data(rows).values() if own[0].r1 is not None), models_of(rows))
    criterion = own_criterion(rows)
    dense = next((row for row in rows if row.stage == "dense"), None)
    own = [row for row in rows if row.stage != "dense" and row.criterion == criterion]
    if not own:
        return ([] if dense is None or plan else _recall_cards(dense, [], [])) + (
            [] if plan is None else _planned(plan)
        )
    last = own[-1]
    cards = []
    for measure in MEASURES:
        now, was = measure.of(last), None if dense is None else measure.of(dense)
        if now is not None:
            cards.append(
                Card(measure.name, measure.show(now))
                if was is None
                else Card(measure.name, measure.show(now), measure.show(was), change(was, now))
            )
    others = [row for row in rows if row.stage != "dense" and row.criterion != criterion]
    return cards + _recall_cards(dense, own, others)


def _recall_cards(dense: Evaluation | None, own: Sequence[Evaluation], others: Sequence[Evaluation]) -> list[Card]:
    last = own[-1] if own else dense
    if last is None or last.r1 is None:
        return []
    before = "" if dense is None or dense.r1 is None or last is dense else f"{dense.r1:.1f}"
    points = "" if dense is None or dense.r1 is None or last is dense else _points(last.r1 - dense.r1)
    steps = [f"{row.stage} {row.r1:.1f}" for row in own if row.r1 is not None]
    said = [", ".join(steps)] if len(steps) > 1 else []
    rivals = [row for row in others if row.stage == "pruned" and row.r1 is not None]
    if rivals and any(row.stage == "pruned" for row in own):
        best = max(rivals, key=lambda row: row.r1 or 0.0)
        said.append(f"pruned by {best.criterion}: {best.r1:.1f}")
    return [Card("recall@1, mean of both directions, percent", f"{last.r1:.1f}", before, points, "; ".join(said))]


def _points(difference: float) -> str:
    return f"{'−' if difference < 0 else '+'}{abs(difference):.1f} points"


def _planned(plan: Plan) -> list[Card]:
    cards = []
    for name, of in (("parameters", "parameters"), ("multiply-adds", "multiply_adds")):
        was, now = (sum(getattr(tower, of) for tower in side.values()) for side in (plan.before, plan.after))
        note = "planned; token embedding not counted" if of == "parameters" else "planned"
        cards.append(Card(name, amount(now), amount(was), change(was, now), note))
    return cards
