"""The parts of a report about whole models: each is its figures, or none where the run holds nothing to draw."""

import math
from collections.abc import Callable, Sequence
from functools import partial

from ._bars import draw_recalls, draw_sizes
from ._curves import draw_curves
from ._evaluation import ACCURACIES, RECALLS, Evaluation, by_data, labels, models_of
from ._figures import Gallery, Shown, Table
from ._format import MEASURES
from ._run import Run

_MOST_ROWS = 400
"""Rows of a table of training steps; of more, some are left out evenly."""


def size_figures(rows: Sequence[Evaluation], gallery: Gallery) -> list[Shown]:
    """Parameters, multiply-adds and latency."""
    rows = models_of(rows)
    if not any(measure.of(row) is not None for row in rows for measure in MEASURES):
        return []
    table = Table(
        ["model", *(measure.name for measure in MEASURES)],
        [
            [name, *(_or_dash(m.of(row), m.show) for m in MEASURES)]
            for name, row in zip(labels(rows), rows, strict=True)
        ],
    )
    caption = "What each model takes. Multiply-adds and latency are of one image and one caption" + (
        "; mope evaluate times the deployment form." if any(row.latency_ms is not None for row in rows) else "."
    )
    return [
        gallery.show(
            "sizes", partial(draw_sizes, rows), label="Bars of what each model takes.", caption=caption, table=table
        )
    ]


def recall_figures(rows: Sequence[Evaluation], gallery: Gallery) -> list[Shown]:
    """Recall of all models, a figure for each data that they were evaluated on."""
    groups = by_data([row for row in rows if row.recalls])
    return [_recall_figure(own, about, place, gallery) for place, (about, own) in enumerate(groups.items(), start=1)]


def _recall_figure(rows: Sequence[Evaluation], about: str, place: int, gallery: Gallery) -> Shown:
    measured = [name for name in RECALLS if any(name in row.recalls for row in rows)]
    headings = [name.replace("i2t_r", "image→text R@").replace("t2i_r", "text→image R@") for name in measured]
    table = Table(
        ["model", *headings, "pairs"],
        [
            [
                name,
                *(_or_dash(row.recalls.get(m), "{:.1f}".format) for m in measured),
                _or_dash(row.pairs, "{:.0f}".format),
            ]
            for name, row in zip(labels(rows), rows, strict=True)
        ],
    )
    caption = (
        f"Retrieval{f' ({about})' if about else ' on test pairs'}: bars R@1, lines R@5, diamonds R@10. Solid grey: dense; "
        "hatched orange: pruned, not trained; solid blue: distilled."
    )
    label = "Bars of the recall of each model, image to text and text to image."
    name = "recall" if place == 1 else f"recall-{place}"
    return gallery.show(name, partial(draw_recalls, rows), label=label, caption=caption, table=table)


def accuracy_tables(rows: Sequence[Evaluation]) -> dict[str, Table]:
    """Zero-shot accuracies of all models, by what they were evaluated on."""
    groups = by_data([row for row in rows if row.accuracies])
    return {
        about: Table(
            ["model", *ACCURACIES.values(), "images"],
            [
                [
                    name,
                    *(_or_dash(row.accuracies.get(key), "{:.1f}".format) for key in ACCURACIES),
                    _or_dash(row.pairs, "{:.0f}".format),
                ]
                for name, row in zip(labels(own), own, strict=True)
            ],
        )
        for about, own in groups.items()
    }


def training_figures(run: Run, gallery: Gallery) -> list[Shown]:
    """Training curves."""
    steps = run.training
    if not steps:
        return []
    terms = list(dict.fromkeys(name for step in steps for name in step.terms))
    every = math.ceil(len(steps) / _MOST_ROWS)
    chosen = [step for place, step in enumerate(steps) if place % every == 0 or place == len(steps) - 1]
    rows = [
        [
            str(step.step),
            f"{step.loss:.4g}",
            *(_or_dash(step.terms.get(term), "{:.4g}".format) for term in terms),
            f"{step.learning_rate:.3g}",
        ]
        for step in chosen
    ]
    caption = f"{len(steps)} steps. Terms are not weighted. Grey: every step; blue: the running median." + (
        f" The table holds one step in {every}." if every > 1 else ""
    )
    table = Table(["step", "loss", *terms, "learning rate"], rows)
    label = "Curves of the loss, its terms and the learning rate over the steps of training."
    return [gallery.show("training", partial(draw_curves, steps), label=label, caption=caption, table=table)]


def _or_dash(value: int | float | None, show: Callable[[int | float], str]) -> str:
    return "—" if value is None else show(value)
