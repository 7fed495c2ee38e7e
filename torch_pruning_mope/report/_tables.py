"""Numbers of a report: the headline, and a table for each figure."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..planning import Plan
from ..scoring import Score
from ._figures import MEASURES
from ._layers import PlannedLayer
from ._read import ACCURACIES, RECALLS, Evaluation, by_data, labels, models_of, own_criterion
from ._text import amount, change, milliseconds, percent, short_number, signed


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


def cards_of(rows: Sequence[Evaluation], plan: Plan | None) -> list[Card]:
    """Headline numbers of the last model of the report's own criterion; a plan's where nothing was evaluated."""
    rows = next((own for own in by_data(rows).values() if own[0].r1 is not None), models_of(rows))
    criterion, dense = own_criterion(rows), next((row for row in rows if row.stage == "dense"), None)
    own = [row for row in rows if row.stage != "dense" and row.criterion == criterion] or ([dense] if dense else [])
    if plan is not None and (not own or own == [dense]):
        return _planned(plan)
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
    points = (percent(before.r1), signed(f"{last.r1 - before.r1:+.1f} points")) if before and before.r1 else ()
    name = "recall@1, mean of both directions, percent"
    return [*cards, Card(name, percent(last.r1), *(points or ("", "")), note="; ".join(said))]


def _planned(plan: Plan) -> list[Card]:
    cards = []
    for name in ("parameters", "multiply_adds"):
        was, now = (sum(getattr(tower, name) for tower in side.values()) for side in (plan.before, plan.after))
        note = "planned; token embedding not counted" if name == "parameters" else "planned"
        cards.append(Card(MEASURES[name][0], amount(now), amount(was), change(was, now), note))
    return cards


def sizes_table(rows: Sequence[Evaluation]) -> Table:
    """Parameters, multiply-adds and latency of each model."""
    return _table(rows, {name: title for name, (title, _) in MEASURES.items()}, lambda name: MEASURES[name][1])


def recalls_table(rows: Sequence[Evaluation]) -> Table:
    """Recalls of each model."""
    names = {name: name.replace("i2t_r", "image→text R@").replace("t2i_r", "text→image R@") for name in RECALLS}
    return _table(rows, names | {"pairs": "pairs"})


def accuracy_tables(rows: Sequence[Evaluation]) -> dict[str, Table]:
    """Zero-shot accuracies of each model, by the data that they were evaluated on."""
    measured = [row for row in rows if any(name in row.numbers for name in ACCURACIES)]
    return {about: _table(own, ACCURACIES | {"pairs": "images"}) for about, own in by_data(measured).items()}


def _table(
    rows: Sequence[Evaluation], names: dict[str, str], show: Callable[[str], Callable[[float], str]] | None = None
) -> Table:
    names = {name: title for name, title in names.items() if any(name in row.numbers for row in rows)}

    def cell(row: Evaluation, name: str) -> str:
        value = row.get(name)
        if value is None:
            return "—"
        return show(name)(value) if show else f"{value:.0f}" if name == "pairs" else percent(value)

    cells = [[label, *(cell(row, name) for name in names)] for label, row in zip(labels(rows), rows, strict=True)]
    return Table(["model", *names.values()], cells)


def scores_table(scores: Sequence[Score]) -> Table:
    """Scores of one kind with their standard errors, a row per layer."""
    layers: dict[int, dict[int, str]] = {}
    for score in scores:
        error = f" ± {short_number(100 * score.stderr)}" if math.isfinite(score.stderr) else ""
        layers.setdefault(score.unit.layer, {})[score.unit.index] = signed(f"{100 * score.value:.3g}") + error
    most = 1 + max(max(cells) for cells in layers.values())
    rows = [[f"layer {layer}", *(cells.get(place, "") for place in range(most))] for layer, cells in layers.items()]
    return Table(["score × 100", *map(str, range(most))], rows)


def kept_table(layers: Sequence[PlannedLayer]) -> Table:
    """Heads and neurons that are left of each layer."""
    rows = []
    for layer in layers:
        heads = f"{layer.heads.count(True)} of {len(layer.heads)}" if layer.heads else _fewer(layer.removed_heads)
        gone = " ".join(str(place) for place, kept in enumerate(layer.heads) if not kept)
        neurons = (
            _fewer(layer.removed_neurons)
            if layer.neurons is None
            else f"{layer.neurons - layer.removed_neurons} of {layer.neurons}"
        )
        rows.append(
            [f"{layer.tower} {layer.index}", heads, gone or "—", neurons, "removed" if layer.removed else "kept"]
        )
    return Table(["layer", "heads kept", "heads removed", "neurons kept", "layer"], rows)


def _fewer(count: int) -> str:
    return f"{count} fewer" if count else "all"


def footprint_table(plan: Plan) -> Table:
    """Each tower's size before and after, by the plan's own counts."""
    rows = []
    latency = plan.settings.get("latency") or {}
    for tower, before in plan.before.items():
        for name in ("parameters", "token_embedding", "multiply_adds"):
            was, now = getattr(before, name), getattr(plan.after[tower], name)
            if was or now:
                rows.append([f"{tower} {name.replace('_', ' ')}", amount(was), amount(now), change(was, now)])
        if all(tower in latency.get(side, {}) for side in ("before", "after")):
            was, now = (1000 * float(latency[side][tower]) for side in ("before", "after"))
            rows.append([f"{tower} latency", milliseconds(was), milliseconds(now), change(was, now)])
    return Table(["tower", "before", "after", "change"], rows)
