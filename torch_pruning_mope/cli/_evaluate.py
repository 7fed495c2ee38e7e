"""``mope evaluate``: what a model retrieves and classifies."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ._command import Call, OptionalRun, command
from ._options import DeviceOption, ModelInstead, PairsOption, QuietOption, SeedOption, data_option
from ._source import EMOJI, OtherData, Part, Source
from ._table import rows_table

if TYPE_CHECKING:
    from ..loading import LoadedModel
    from ._parts import Parts
    from ._started import StartedRun


Task = StrEnum("Task", {"retrieval": "retrieval", "zero_shot": "zero-shot"})
Rival = StrEnum("Rival", ["l1", "taylor", "hessian", "random"])
_LABELS = {"l1": "L1", "taylor": "Taylor", "hessian": "Hessian"}


@dataclass(frozen=True)
class Measuring:
    """Task, images and timing."""

    task: Annotated[Task, typer.Option(help="Retrieval of pairs, or classification of labelled images.")] = (
        Task.retrieval
    )
    part: Annotated[Part, data_option(help="Part of the run's pairs.")] = Part.test
    pairs: PairsOption = None
    classnames: Annotated[
        Path | None, data_option(help="File with a class name a line, for zero-shot; else folders' names.")
    ] = None
    templates: Annotated[str, data_option(help="Prompts of zero-shot: open_clip (80), simple (7).")] = "open_clip"
    batch_size: Annotated[int, typer.Option(help="Inputs at once.", min=1)] = 64
    workers: Annotated[int, typer.Option(help="Processes that read images.")] = 0
    latency: Annotated[
        bool, typer.Option("--latency/--no-latency", help="Time each model at batch 1, in deployment form.")
    ] = True
    seed: SeedOption = 0

    def row(self, data: Any, loaded: "LoadedModel", **options: Any) -> dict[str, Any]:
        """One model's row of ``evaluation.json``."""
        from ..evaluation import evaluate

        if self.task is Task.zero_shot:
            options |= {"task": "zero_shot", "classnames": self.classnames, "templates": self.templates}
        else:
            options["limit"] = self.pairs
        options |= {"batch_size": self.batch_size, "num_workers": self.workers, "time_it": self.latency}
        return evaluate(loaded, data, **options)

    def pairs_of(self, parts: "Parts", part: Part) -> Any:
        """The pairs as ``evaluate`` takes them."""
        return parts.pairs(part, self.pairs, self.seed) if parts.source.data == EMOJI else parts.dataset(part)


@command("evaluate")
def evaluate_command(
    call: Call,
    measuring: Measuring,
    other: OtherData,
    run: OptionalRun = None,
    model: ModelInstead = None,
    against: Annotated[
        list[Rival] | None,
        typer.Option(
            help="Also the run's model cut to the same size by another criterion, not trained; may be repeated.",
            show_default=False,
        ),
    ] = None,
    device: DeviceOption = "cpu",
    quiet: QuietOption = False,
) -> None:
    """Measures recall both ways, or zero-shot accuracy, and size and time, of every model of a run, or of any one model."""
    if (run is None) == (model is None):
        raise ValueError("one of RUN and --model must be given; found " + ("none." if run is None else "both."))
    if against and run is None:
        raise ValueError("--against goes with RUN, whose size and pairs it takes; found --model. Give a run.")
    if run is None:
        rows = [_row_of_name(str(model), device, measuring, other, progress=not quiet)]
    else:
        from ..evaluation import save_evaluation
        from ._started import started

        with started(call, run, other, progress=not quiet) as begun:
            rows = rows_of(begun, measuring, against or [], progress=not quiet)
            save_evaluation(rows, run / "evaluation.json")
    call.show(rows_table(rows))
    call.answer({"rows": rows})


def rows_of(
    begun: "StartedRun", measuring: Measuring, against: Sequence[Rival], *, progress: bool
) -> list[dict[str, Any]]:
    """A row for each model of a run, and for each rival."""
    rows = []
    for criterion, stage, loaded in _models(begun, against):
        about = {"label": begun.model_name, "criterion": criterion, "stage": stage, "progress": progress}
        choose = partial(begun.chosen, loaded, measuring.part)
        rows.append(_row(measuring, loaded, begun.other.over(begun.source), choose, **about))
    return rows


def _row_of_name(name: str, device: str, measuring: Measuring, other: OtherData, *, progress: bool) -> dict[str, Any]:
    from ..loading import ExportedEncoder
    from ..runs import shown
    from ._parts import Parts

    source = other.over(Source(model=name, device=device))
    loaded = source.load()
    shipped = isinstance(loaded.model, ExportedEncoder)
    about = {"criterion": "" if shipped else "dense", "stage": "shipped" if shipped else "dense", "progress": progress}

    def choose() -> tuple[Parts, Part]:
        return Parts(source, loaded, progress=progress), Part.all

    return _row(measuring, loaded, source, choose, label=shown(name), **about)


def _row(
    measuring: Measuring,
    loaded: "LoadedModel",
    source: Source,
    choose: "Callable[[], tuple[Parts, Part]]",
    **about: Any,
) -> dict[str, Any]:
    """One model's row, with the data that it was measured on."""
    from ..runs import shown

    if measuring.task is Task.zero_shot:
        row, part = measuring.row(source.data, loaded, **_reading(source), **about), Part.all
    else:
        parts, part = choose()
        part = measuring.part if source.data == EMOJI else part
        row = measuring.row(measuring.pairs_of(parts, part), loaded, **about)
    return row | {"data": shown(source.data), "part": part.value}


def _reading(source: Source) -> dict[str, Any]:
    """Options of the reader of labelled images."""
    own = {"encoding": source.encoding, "max_skipped": source.max_skipped}
    permitted = {"allow_commands": source.allow_commands, "follow_links": source.follow_links}
    return {name: value for name, value in (own | permitted).items() if value is not None}


def _models(begun: "StartedRun", against: Sequence[Rival]) -> "Iterator[tuple[str, str, LoadedModel]]":
    """Criterion, stage and model, of all that are there, one at a time; then of the rivals."""
    from ..checkpoint import load_model
    from ..runtime import DEPLOYMENT
    from ._export import SHIPPED
    from ._rivals import rivals

    yield "dense", "dense", begun.load()
    for stage in ("pruned", "distilled"):
        if (begun.path / stage).exists():
            yield "MoPE", stage, begun.load_saved(stage)
    if (begun.path / SHIPPED / DEPLOYMENT).is_file():
        yield "MoPE", "shipped", load_model(str(begun.path / SHIPPED))
    for name, loaded in rivals(begun, [rival.value for rival in against]):
        yield _LABELS.get(name, name), "pruned", loaded
