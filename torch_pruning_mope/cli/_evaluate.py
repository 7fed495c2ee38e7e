"""``mope evaluate``: what a model retrieves and classifies."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ._command import Call, OptionalRun, command
from ._options import (
    EMOJI,
    DeviceOption,
    ModelInstead,
    OtherData,
    PairsOption,
    Part,
    QuietOption,
    SeedOption,
    Source,
    data_option,
)

if TYPE_CHECKING:
    from rich.table import Table

    from ..loading import LoadedModel
    from ._started import Parts, StartedRun


Task = StrEnum("Task", {"retrieval": "retrieval", "zero_shot": "zero-shot"})
Rival = StrEnum("Rival", ["l1", "taylor", "hessian", "random"])
_LABELS = {"l1": "L1", "taylor": "Taylor", "hessian": "Hessian"}


@dataclass(frozen=True)
class Measuring:
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

    def row(self, loaded: "LoadedModel", parts: "Parts", part: Part, **about: Any) -> dict[str, Any]:
        """One model's row of ``evaluation.json``, with the data that it was measured on."""
        from ..evaluation import evaluate
        from ..runs import shown

        source = parts.source
        data: Any = source.data
        options = about | {"batch_size": self.batch_size, "num_workers": self.workers, "time_it": self.latency}
        if self.task is Task.zero_shot:
            part = Part.all
            options |= {"task": "zero_shot", "classnames": self.classnames, "templates": self.templates}
            options |= {name: getattr(source, name) for name in ("max_skipped", "allow_commands", "follow_links")}
            options |= {} if source.encoding is None else {"encoding": source.encoding}
        elif source.data == EMOJI:
            part = self.part
            data = parts.pairs(part, self.pairs, self.seed)
        else:
            data, options["limit"] = parts.dataset(part), self.pairs
        return evaluate(loaded, data, **options) | {"data": shown(source.data), "part": part.value}


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
        about: dict[str, Any] = {
            "label": begun.model_name,
            "criterion": criterion,
            "stage": stage,
            "progress": progress,
        }
        rows.append(measuring.row(loaded, *begun.chosen(loaded, measuring.part), **about))
    return rows


def _row_of_name(name: str, device: str, measuring: Measuring, other: OtherData, *, progress: bool) -> dict[str, Any]:
    from ..loading import ExportedEncoder
    from ..runs import shown
    from ._started import Parts

    source = other.over(Source(model=name, device=device))
    loaded = source.load()
    shipped = isinstance(loaded.model, ExportedEncoder)
    about: dict[str, Any] = {
        "criterion": "" if shipped else "dense",
        "stage": "shipped" if shipped else "dense",
        "progress": progress,
    }
    return measuring.row(loaded, Parts(source, loaded, progress=progress), Part.all, label=shown(name), **about)


def _models(begun: "StartedRun", against: Sequence[Rival]) -> "Iterator[tuple[str, str, LoadedModel]]":
    """Criterion, stage and model, of all that are there, one at a time; then of the rivals."""
    from ..checkpoint import load_model
    from ..runtime import DEPLOYMENT
    from ._export import SHIPPED
    from ._started import rivals

    yield "dense", "dense", begun.load()
    for stage in ("pruned", "distilled"):
        if (begun.path / stage).exists():
            yield "MoPE", stage, begun.load_saved(stage)
    if (begun.path / SHIPPED / DEPLOYMENT).is_file():
        yield "MoPE", "shipped", load_model(str(begun.path / SHIPPED))
    for name, loaded in rivals(begun, [rival.value for rival in against]):
        yield _LABELS.get(name, name), "pruned", loaded


COUNTS = {
    "parameters": ("params", 1e6, " M"),
    "multiply_adds": ("MMACs", 1e6, ""),
    "bytes": ("MB", 1e6, ""),
    "latency_ms": ("ms", 1.0, ""),
}
PERCENT = {
    "i2t_r1": "i→t R@1", "i2t_r5": "R@5", "i2t_r10": "R@10", "t2i_r1": "t→i R@1", "t2i_r5": "R@5", "t2i_r10": "R@10",
    "top1": "top-1", "top5": "top-5", "mean_per_class": "per class",
}  # fmt: skip


def rows_table(rows: Sequence[dict[str, Any]]) -> "Table":
    """A column for each figure that a row of ``evaluation.json`` has."""
    from rich.table import Table

    table = Table()
    table.add_column("model", no_wrap=True)
    counts = [name for name in COUNTS if any(name in row for row in rows)]
    percent = [name for name in PERCENT if any(name in row for row in rows)]
    for heading in [*(COUNTS[name][0] for name in counts), *(PERCENT[name] for name in percent), "images"]:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        numbers = [f"{row[name] / COUNTS[name][1]:.2f}{COUNTS[name][2]}" if name in row else "" for name in counts]
        shares = [f"{row[name]:.1f}" if name in row else "" for name in percent]
        own = row["criterion"] in {"MoPE", "dense", ""}
        table.add_row(row["stage"] if own else row["criterion"], *numbers, *shares, str(row["pairs"]))
    return table
