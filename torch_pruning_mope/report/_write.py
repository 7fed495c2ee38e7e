"""A run folder as one page."""

from importlib import resources
from pathlib import Path

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from .._io import write_whole
from .._version import __version__
from ..planning import Plan
from ._examples import OUTCOMES, ChangedExamples
from ._figures import Gallery
from ._format import in_words
from ._headline import cards_of
from ._kept import layers_of
from ._model_sections import accuracy_tables, recall_figures, size_figures, training_figures
from ._run import MAKERS, read_run
from ._text import clean
from ._unit_sections import footprint_table, kept_figures, kept_table, score_figures


def write_report(
    run_folder: str | Path,
    *,
    output: str | Path | None = None,
    examples: ChangedExamples | None = None,
    title: str | None = None,
) -> Path:
    """Writes what a run folder holds as one HTML file that needs no other, and its figures as PNG and SVG.

    The folder may hold ``scores.json`` (:meth:`ScoreTable.save`), ``plan.json`` (:meth:`Plan.save`), ``evaluation.json``,
    ``training.jsonl`` (:func:`append_jsonl`), ``examples.json`` (:meth:`ChangedExamples.save`) and ``config.yaml``. What is
    missing is named as missing.

    Args:
        run_folder: The folder.
        output: The HTML file; by default ``report.html`` in the folder. Figures go into ``figures`` beside it.
        examples: Queries that were answered differently; saved to ``examples.json`` in the run folder first.
        title: What stands at the top.

    Returns:
        The HTML file's path.

    Raises:
        FileNotFoundError: If there is no such folder, or nothing to report in it.
        ValueError: If a file is damaged. No page is written.
    """
    folder = Path(run_folder)
    if examples is not None and folder.is_dir():
        examples.save(folder / "examples.json")
    run = read_run(folder)
    target = folder / "report.html" if output is None else Path(output)
    gallery = Gallery(target.parent / "figures")
    gallery.folder.mkdir(parents=True, exist_ok=True)
    page = _template("report.html.jinja").render(
        title=clean(title or f"Pruning report: {run.name}", 200),
        version=__version__,
        style=Markup(_asset("report.css")),  # noqa: S704 (our own)
        run=run,
        makers=MAKERS,
        cards=cards_of(run.evaluation, run.plan),
        scores=score_figures(run, gallery),
        kept=kept_figures(run, gallery),
        kept_table=None if run.plan is None else kept_table(layers_of(run.plan, run.scores)),
        settings={} if run.plan is None else _settings(run.plan),
        footprints=None if run.plan is None else footprint_table(run.plan),
        sizes=size_figures(run.evaluation, gallery),
        recalls=recall_figures(run.evaluation, gallery),
        accuracies=accuracy_tables(run.evaluation),
        training=training_figures(run, gallery),
        outcomes=OUTCOMES,
    )
    write_whole(target, page)
    return target


def _settings(plan: Plan) -> dict[str, str]:
    """What the plan was asked for, in words; times stand in a table of their own."""
    found = {in_words(name): value for name, value in plan.settings.items() if name != "latency"}
    return {clean(str(name)): clean(_words(value), 500) for name, value in found.items() if value is not None}


def _words(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{in_words(str(name))}: {_words(own)}" for name, own in value.items())
    if isinstance(value, list):
        return (" and " if all(isinstance(own, str) for own in value) else "; ").join(map(_words, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _asset(name: str) -> str:
    return (resources.files(__package__) / "assets" / name).read_text("utf-8")


def _template(name: str) -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_asset(name))
