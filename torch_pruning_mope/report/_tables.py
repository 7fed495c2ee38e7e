"""Numbers of a report: the headline, and its tables."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..planning import LayerPlan, Plan
from ..scoring import Score
from ._read import ACCURACIES, RECALLS, Evaluation, by_data, labels, models_of, own_criterion
from ._text import amount, change, milliseconds, percent, short_number, signed

Show = Callable[[float], str]
MEASURES: dict[str, tuple[str, Show]] = {
    "parameters": ("parameters", amount),
    "multiply_adds": ("multiply-adds", amount),
    "latency_ms": ("latency", milliseconds),
}


@dataclass(frozen=True)
class Table:
    """Column headings, and rows of as many cells, of which the first is the row's heading."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Card:
    """One headline number, before and after."""

    name: str
    value: str
    before: str = ""
    change: str = ""
    note: str = ""


def cards_of(rows: Sequence[Evaluation], plans: Sequence[Plan]) -> list[Card]:
    """Headline numbers of the last model of the report's own criterion; the plans' where nothing was evaluated."""
    rows = next((own for own in by_data(rows).values() if own[0].r1 is not None), models_of(rows))
    criterion, dense = own_criterion(rows), next((row for row in rows if row.stage == "dense"), None)
    own = [row for row in rows if row.stage != "dense" and row.criterion == criterion] or ([dense] if dense else [])
    if plans and (not own or own == [dense]):
        return _planned(plans)
    if not own:
        return []
    last, cards = own[-1], list[Card]()
    before = None if last is dense else dense
    for name, (title, show) in MEASURES.items():
        now, was = last.get(name), None if before is None else before.get(name)
        if now is not None:
            cards.append(Card(title, show(now), *((show(was), change(was, now)) if was is not None else ())))
    if last.r1 is None:
        return cards
    said = [", ".join(f"{row.stage} {row.r1:.1f}" for row in own if row.r1 is not None)] if len(own) > 1 else []
    rivals = [row for row in rows if row.stage == own[0].stage == "pruned" and row.criterion != criterion]
    if best := max(rivals, key=lambda row: row.r1 or 0.0, default=None):
        said.append(f"pruned by {best.criterion}: {best.r1 or 0:.1f}")
    points = (percent(before.r1), signed(f"{last.r1 - before.r1:+.1f} points")) if before and before.r1 else ("", "")
    name = "recall@1, mean of both directions, percent"
    return [*cards, Card(name, percent(last.r1), *points, note="; ".join(said))]


def _planned(plans: Sequence[Plan]) -> list[Card]:
    cards = []
    for name in ("parameters", "multiply_adds"):
        was, now = (sum(getattr(tower, name) for tower in side.values()) for side in (plans[0].before, plans[-1].after))
        note = "planned; token embedding not counted" if name == "parameters" else "planned"
        cards.append(Card(MEASURES[name][0], amount(now), amount(was), change(was, now), note))
    return cards


def sizes_table(rows: Sequence[Evaluation]) -> Table:
    """Parameters, multiply-adds and latency of each model."""
    return _table(rows, MEASURES)


def recalls_table(rows: Sequence[Evaluation]) -> Table:
    """Recalls of each model."""
    names = {name: name.replace("i2t_r", "image→text R@").replace("t2i_r", "text→image R@") for name in RECALLS}
    return _table(rows, {name: (title, percent) for name, title in names.items()} | {"pairs": ("pairs", amount)})


def accuracy_tables(rows: Sequence[Evaluation]) -> dict[str, Table]:
    """Zero-shot accuracies of each model, by the data that they were evaluated on."""
    columns = {name: (title, percent) for name, title in ACCURACIES.items()} | {"pairs": ("images", amount)}
    measured = [row for row in rows if any(name in row.numbers for name in ACCURACIES)]
    return {about: _table(own, columns) for about, own in by_data(measured).items()}


def _table(rows: Sequence[Evaluation], columns: Mapping[str, tuple[str, Show]]) -> Table:
    """A row for each model, with the columns that any has."""
    columns = {name: column for name, column in columns.items() if any(name in row.numbers for row in rows)}
    cells = [
        [label, *(show(row.numbers[name]) if name in row.numbers else "—" for name, (_, show) in columns.items())]
        for label, row in zip(labels(rows), rows, strict=True)
    ]
    return Table(["model", *(title for title, _ in columns.values())], cells)


def scores_table(scores: Sequence[Score]) -> Table:
    """Scores of one kind with their standard errors, a row per layer."""
    layers: dict[int, dict[int, str]] = {}
    for score in scores:
        error = f" ± {short_number(100 * score.stderr)}" if math.isfinite(score.stderr) else ""
        layers.setdefault(score.unit.layer, {})[score.unit.index] = signed(f"{100 * score.value:.3g}") + error
    most = 1 + max(max(cells) for cells in layers.values())
    rows = [[f"layer {layer}", *(cells.get(place, "") for place in range(most))] for layer, cells in layers.items()]
    return Table(["score × 100", *map(str, range(most))], rows)


def kept_table(layers: Sequence[LayerPlan]) -> Table:
    """Heads and neurons that are left of each layer."""
    rows = [
        [
            f"{row.tower} {row.layer}",
            f"{row.heads_kept} of {row.heads}",
            f"{row.neurons_kept} of {row.neurons}",
            "removed" if row.removed else "kept",
        ]
        for row in layers
    ]
    return Table(["layer", "heads kept", "neurons kept", "layer"], rows)


def stages_table(plans: Sequence[Plan]) -> Table:
    """Parameters and multiply-adds after each stage, and the sum of the scores of what went in it."""
    rows = []
    for number, plan in enumerate(plans, 1):
        row = [f"stage {number}"]
        for name in ("parameters", "multiply_adds"):
            was, now = (sum(getattr(of, name) for of in side.values()) for side in (plans[0].before, plan.after))
            row += [amount(now), change(was, now)]
        rows.append([*row, signed(f"{plan.loss:.4g}")])
    return Table(["stage", "parameters", "change", "multiply-adds", "change", "scores of what went"], rows)


def footprint_table(first: Plan, last: Plan) -> Table:
    """Each tower's size before the first plan and after the last, by their own counts."""
    rows = []
    times = [(plan.settings.get("latency") or {}).get(side, {}) for plan, side in ((first, "before"), (last, "after"))]
    for tower, before in first.before.items():
        for name in ("parameters", "token_embedding", "multiply_adds"):
            was, now = getattr(before, name), getattr(last.after[tower], name)
            if was or now:
                rows.append([f"{tower} {name.replace('_', ' ')}", amount(was), amount(now), change(was, now)])
        if all(tower in side for side in times):
            was, now = (1000 * float(side[tower]) for side in times)
            rows.append([f"{tower} latency", milliseconds(was), milliseconds(now), change(was, now)])
    return Table(["tower", "before", "after", "change"], rows)
