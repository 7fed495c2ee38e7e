"""A run folder as one page, with its figures beside it."""

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from .._io import write_whole
from .._version import __version__
from ..planning import Plan
from ..scoring import ScoreTable
from ._changed import OUTCOMES, ChangedExamples
from ._figures import draw_curves, draw_kept, draw_recalls, drawing
from ._heat_maps import KINDS, draw_heat_maps
from ._read import MAKERS, Run, by_data, models_of, read_run
from ._tables import (
    MEASURES,
    Table,
    accuracy_tables,
    cards_of,
    footprint_table,
    kept_table,
    recalls_table,
    scores_table,
    sizes_table,
    stages_table,
)
from ._text import clean, without_paths

MARK = '<meta name="generator" content="torch-pruning-mope'
"""Begins the tag by which a page is known to be ours."""


@dataclass(frozen=True)
class Drawn:
    """A figure to draw: its file's name, what draws it, its caption, its numbers."""

    name: str
    draw: partial[Figure]
    caption: str
    table: Table | None = None

    def shown(self, folder: Path) -> dict[str, Any]:
        """Writes the figure as SVG and PNG; returns it for the page."""
        with drawing():
            figure = self.draw()
            figure.draw_without_rendering()
            figure.set_layout_engine("none")  # it is laid out now; each format would do so again
            svg, png = io.BytesIO(), io.BytesIO()
            figure.savefig(svg, format="svg", metadata={"Date": None})
            figure.savefig(png, format="png", dpi=150, metadata={"Software": None})
        write_whole(folder / f"{self.name}.svg", svg.getvalue())
        write_whole(folder / f"{self.name}.png", png.getvalue())
        image = base64.b64encode(svg.getvalue()).decode("ascii")
        return {"image": image, "caption": self.caption, "table": self.table}


def write_report(
    run_folder: str | Path,
    *,
    output: str | Path | None = None,
    examples: ChangedExamples | None = None,
    title: str | None = None,
) -> Path:
    """Writes a run folder as one HTML file that needs no other, and its figures as PNG and SVG.

    The folder may hold ``scores.json`` (:meth:`ScoreTable.save`), ``plan.json`` (:meth:`Plan.save`), ``evaluation.json``
    (:func:`save_evaluation`), ``training.jsonl`` (:class:`TrainingLog`), ``examples.json`` (:meth:`ChangedExamples.save`) and
    ``config.yaml``; or scores and plans in folders of its stages. The page names what is missing, and of absolute paths
    shows the last part only.

    Args:
        run_folder: The folder.
        output: The HTML file; by default ``report.html`` in the folder. Figures go into the run folder's ``figures``, wherever
            the page is.
        examples: Queries that were answered differently; saved to ``examples.json`` in the run folder first.
        title: Heading of the page.

    Returns:
        The HTML file's path.

    Raises:
        FileNotFoundError: If there is no such folder, or nothing to report in it.
        ValueError: If a file is damaged. The page before stays in place.
    """
    folder = Path(run_folder)
    if examples is not None and folder.is_dir():
        examples.save(folder / "examples.json")
    run = read_run(folder)
    target = folder / "report.html" if output is None else Path(output)
    figures = folder / "figures"
    for place in (figures, target.parent):
        place.mkdir(parents=True, exist_ok=True)
    models = [row for row in models_of(run.evaluation) if any(name in row.numbers for name in MEASURES)]
    content: dict[str, Any] = {
        "title": title or f"Pruning report: {run.name}",
        "mark": Markup(MARK),  # noqa: S704 (our own)
        "version": __version__,
        "style": Markup(_asset("report.css")),  # noqa: S704 (our own)
        "run": run,
        "notes": _notes(run),
        "makers": MAKERS,
        "outcomes": OUTCOMES,
        "cards": cards_of(run.evaluation, run.plans),
        "stages": stages_table(run.plans) if len(run.plans) > 1 else None,
        "settings": _settings(run.plans[-1]) if run.plans else {},
        "sizes": sizes_table(models) if models else None,
        "footprints": footprint_table(run.plans[0], run.plans[-1]) if run.plans else None,
        "accuracies": accuracy_tables(run.evaluation),
    }
    for section, found in _figures(run).items():
        content[section] = [figure.shown(figures) for figure in found]
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=clean
    )
    write_whole(target, environment.from_string(_asset("report.html.jinja")).render(content))
    return target


def _figures(run: Run) -> dict[str, list[Drawn]]:
    """All figures by section."""
    kept = []
    for tower in dict.fromkeys(layer.tower for layer in run.layers):
        own = [layer for layer in run.layers if layer.tower == tower]
        caption = f"{tower.capitalize()} tower: heads and neurons kept of each layer."
        kept.append(Drawn(f"kept-{tower}", partial(draw_kept, own), caption, kept_table(own)))
    recalls = []
    for place, (about, rows) in enumerate(by_data([row for row in run.evaluation if row.r1 is not None]).items(), 1):
        caption = (
            f"Retrieval{f' ({about})' if about else ''}: bars R@1, lines R@5, diamonds R@10. Grey: dense; hatched orange: "
            "pruned; orange: reconstructed; blue: distilled."
        )
        name = "recall" if place == 1 else f"recall-{place}"
        recalls.append(Drawn(name, partial(draw_recalls, rows), caption, recalls_table(rows)))
    caption = f"{len(run.training)} steps. Terms are not weighted. Grey: every step; blue: the running median."
    training = [Drawn("training", partial(draw_curves, run.training), caption)] if run.training else []
    scores = [] if run.scores is None else list(_score_figures(run.scores))
    return {"scores": scores, "kept": kept, "recalls": recalls, "training": training}


def _score_figures(table: ScoreTable) -> Iterator[Drawn]:
    for tower in dict.fromkeys(score.unit.tower for score in table.scores):
        for kind in sorted(KINDS, key="neurons".__eq__):  # the widest last
            if scores := table.of(kind, tower):
                yield Drawn(
                    f"scores-{tower}-{kind}",
                    partial(draw_heat_maps, table, [tower], [kind]),
                    f"{tower.capitalize()} tower, {KINDS[kind]}. In small: ± one standard error. Hatched: within two standard "
                    "errors of 0.",
                    scores_table(scores),
                )


def _notes(run: Run) -> list[str]:
    if run.scores is not None and run.plans and run.plans[0].weights not in {None, run.scores.weights}:
        return ["The plan is of a model of other weights than the scores: they are not of the same run."]
    return []


def _settings(plan: Plan) -> dict[str, str]:
    """Arguments of the plan in words; times stand in a table of their own."""
    found = {name.replace("_", " "): value for name, value in plan.settings.items() if name != "latency"}
    return {name: without_paths(_words(value)) for name, value in found.items() if value is not None}


def _words(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{str(name).replace('_', ' ')}: {_words(own)}" for name, own in value.items())
    if isinstance(value, list):
        return "; ".join(map(_words, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _asset(name: str) -> str:
    return (resources.files(__package__) / "assets" / name).read_text("utf-8")
