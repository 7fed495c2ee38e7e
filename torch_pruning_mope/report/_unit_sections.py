"""The parts of a report about units: each is its figures, or none where the run holds nothing to draw."""

import math
from collections.abc import Sequence
from functools import partial

from ..planning import Plan
from ..scoring import Score
from ._error_bars import draw_error_bars
from ._figures import Gallery, Shown, Table
from ._format import amount, change, in_words, milliseconds
from ._heat_maps import KINDS, draw_heat_maps, short_number, signed
from ._kept import Layer, draw_kept, layers_of
from ._run import Run

_NARROW_FIRST = sorted(KINDS, key="neurons".__eq__)


def score_figures(run: Run, gallery: Gallery) -> list[Shown]:
    """Heat maps and error bars of each tower."""
    table, shown = run.scores, list[Shown]()
    if table is None:
        return shown
    marks = "" if run.plan is None else " Marked is what the plan keeps and removes."
    for tower in dict.fromkeys(score.unit.tower for score in table.scores):
        for kind in [kind for kind in _NARROW_FIRST if table.of(kind, tower)]:
            name = f"{tower} tower, {KINDS[kind]}"
            shown.append(
                gallery.show(
                    f"scores-{tower}-{kind}",
                    partial(draw_heat_maps, table, [tower], [kind]),
                    label=f"Heat map of scores, layer by layer: {name}. The numbers are in the table below.",
                    caption=f"{name[0].upper()}{name[1:]}. In small: ± one standard error. Hatched: within two standard errors "
                    "of 0, not to be told from a unit of no use.",
                    table=_scores(table.of(kind, tower)),
                )
            )
            shown.append(
                gallery.show(
                    f"errors-{tower}-{kind}",
                    partial(draw_error_bars, table, tower, kind, run.plan),
                    label=f"Scores from lowest to highest with error bars of two standard errors: {name}.",
                    caption=f"{name[0].upper()}{name[1:]}, from lowest to highest, ± two standard errors.{marks}",
                )
            )
    return shown


def kept_figures(run: Run, gallery: Gallery) -> list[Shown]:
    """Heads and neurons that are left, tower by tower; none where the scores do not tell how many there were."""
    layers = [] if run.plan is None else layers_of(run.plan, run.scores)
    shown = []
    for tower in dict.fromkeys(layer.tower for layer in layers):
        own = [layer for layer in layers if layer.tower == tower]
        if any(layer.heads or layer.neurons for layer in own):
            shown.append(
                gallery.show(
                    f"kept-{tower}",
                    partial(draw_kept, own),
                    label=f"Which heads and how many neurons each layer of the {tower} tower keeps.",
                    caption=f"{tower.capitalize()} tower: what each layer keeps; orange crosses are heads removed.",
                    table=kept_table(own),
                )
            )
    return shown


def kept_table(layers: Sequence[Layer]) -> Table:
    """Heads and neurons that are left of each layer, in numbers."""
    rows = []
    for layer in layers:
        heads = f"{layer.heads.count(True)} of {len(layer.heads)}" if layer.heads else _less(layer.removed_heads)
        removed = " ".join(str(place) for place, kept in enumerate(layer.heads) if not kept)
        neurons = (
            _less(layer.removed_neurons)
            if layer.neurons is None
            else f"{layer.neurons - layer.removed_neurons} of {layer.neurons}"
        )
        rows.append(
            [f"{layer.tower} {layer.index}", heads, removed or "—", neurons, "removed" if layer.removed else "kept"]
        )
    return Table(["layer", "heads kept", "heads removed", "neurons kept", "layer"], rows)


def footprint_table(plan: Plan) -> Table:
    """What each tower takes before and after, by the plan's own counts."""
    rows = []
    for tower, before in plan.before.items():
        after = plan.after[tower]
        for name in ("parameters", "token_embedding", "multiply_adds"):
            was, now = getattr(before, name), getattr(after, name)
            if was or now:
                rows.append([f"{tower} {in_words(name)}", amount(was), amount(now), change(was, now)])
        latency = plan.settings.get("latency") or {}
        if tower in latency.get("before", {}) and tower in latency.get("after", {}):
            was, now = (1000 * float(latency[side][tower]) for side in ("before", "after"))
            rows.append([f"{tower} latency", milliseconds(was), milliseconds(now), change(was, now)])
    return Table(["tower", "before", "after", "change"], rows)


def _scores(scores: Sequence[Score]) -> Table:
    """A row per layer and kind."""
    groups: dict[tuple[str, int], dict[int, str]] = {}
    for score in scores:
        error = f" ± {short_number(100 * score.stderr)}" if math.isfinite(score.stderr) else ""
        cells = groups.setdefault((score.unit.kind, score.unit.layer), {})
        cells[score.unit.index] = signed(f"{100 * score.value:.3g}") + error
    most = 1 + max(max(cells) for cells in groups.values())
    rows = [
        [f"layer {layer}, {KINDS.get(kind, kind)}", *(cells.get(place, "") for place in range(most))]
        for (kind, layer), cells in groups.items()
    ]
    return Table(["score × 100", *map(str, range(most))], rows)


def _less(count: int) -> str:
    return f"{count} fewer" if count else "all"
