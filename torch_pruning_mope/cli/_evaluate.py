"""``mope evaluate``: what a model retrieves and classifies."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from ..checkpoint import load, load_model
from ..evaluation import evaluate, save_evaluation
from ..loading import LoadedModel
from ._app import app, console, one_line_errors, write_json
from ._config import record
from ._data import EMOJI, DataSettings, Part
from ._options import (
    DATA,
    ConfigOption,
    DeviceOption,
    JsonOption,
    OwnDataOption,
    PairsOption,
    PartOption,
    QuietOption,
    RootOption,
    SeedOption,
    SplitOption,
)
from ._rivals import Rival, rivals
from ._run import Run
from ._table import rows_table

Model = tuple[str, str, LoadedModel]
"""Criterion, stage, and the model with its parts."""


class Task(StrEnum):
    """What is measured."""

    retrieval = "retrieval"
    zero_shot = "zero-shot"


@dataclass(frozen=True)
class _Test:
    """What is measured, and on what.

    Attributes:
        task: What.
        settings: Where the data are.
        part: Which part of them.
        limit: At most so many images.
        seed: Which draw of emoji scenes.
        workers: Processes that read images.
        zero_shot: ``classnames`` and ``templates``.
        options: What :func:`evaluate` takes for both tasks.
    """

    task: Task
    settings: DataSettings
    part: Part
    limit: int | None
    seed: int
    workers: int
    zero_shot: dict[str, Any]
    options: dict[str, Any]

    def row(self, name: str, criterion: str, stage: str, loaded: LoadedModel) -> dict[str, Any]:
        """One model's row of ``evaluation.json``."""
        data: Any = self.settings.data
        own: dict[str, Any] = {"num_workers": self.workers}
        if self.task is Task.zero_shot:
            own |= {"task": "zero_shot", **self.zero_shot}
        elif data == EMOJI:
            data = self.settings.pairs(self.part, loaded, self.limit, self.seed)
        else:
            data = self.settings.dataset(self.part, loaded)
        own |= {"limit": self.limit} if self.task is Task.retrieval else {}
        row = evaluate(loaded, data, label=name, criterion=criterion, stage=stage, **own, **self.options)
        return {**row, "data": self.settings.data, "part": self.part.value}


OptionalRun = Annotated[
    Path | None, typer.Argument(help="Folder of a run: its dense, pruned and distilled models are evaluated.")
]
ModelInstead = Annotated[
    str | None, typer.Option(help="A model by name, or a folder, in place of a run.", show_default=False)
]
TaskOption = Annotated[Task, typer.Option(help="Retrieval of pairs, or classification of labelled images.")]
ClassnamesOption = Annotated[
    Path | None,
    typer.Option(help="File with a class name a line, for zero-shot; else folders' names.", rich_help_panel=DATA),
]
TemplatesOption = Annotated[
    str, typer.Option(help="Prompts of zero-shot: open_clip (80), simple (7).", rich_help_panel=DATA)
]
BatchSizeOption = Annotated[int, typer.Option(help="Inputs at once.", min=1)]
WorkersOption = Annotated[int, typer.Option(help="Processes that read images.")]
AgainstOption = Annotated[
    list[Rival] | None,
    typer.Option(
        help="Also the run's model cut to the same size by another criterion, not trained; may be repeated.",
        show_default=False,
    ),
]
LatencyOption = Annotated[
    bool, typer.Option("--latency/--no-latency", help="Time each model at batch 1, in deployment form.")
]


@app.command("evaluate")
def evaluate_command(
    run: OptionalRun = None,
    model: ModelInstead = None,
    task: TaskOption = Task.retrieval,
    data: OwnDataOption = None,
    root: RootOption = None,
    split: SplitOption = None,
    part: PartOption = Part.test,
    pairs: PairsOption = None,
    classnames: ClassnamesOption = None,
    templates: TemplatesOption = "open_clip",
    batch_size: BatchSizeOption = 64,
    workers: WorkersOption = 0,
    against: AgainstOption = None,
    latency: LatencyOption = True,
    device: DeviceOption = "cpu",
    seed: SeedOption = 0,
    quiet: QuietOption = False,
    json: JsonOption = None,
    config: ConfigOption = None,
) -> None:
    """Measures recall both ways, or zero-shot accuracy, and size and time, of every model of a run, or of any one model."""
    given = dict(locals())
    with one_line_errors():
        if (run is None) == (model is None):
            raise ValueError("one of RUN and --model must be given; found " + ("none." if run is None else "both."))
        if against and run is None:
            raise ValueError("--against goes with RUN, whose size and pairs it takes; found --model. Give a run.")
        begun = None if run is None else Run(run)
        other = DataSettings(data, root, split) if data is not None else None
        if begun is not None:
            other = begun.other_data(data, root, split)
        test = _Test(
            task,
            other or (begun.data if begun is not None else DataSettings()),
            part if other is None or other.data == EMOJI else Part.all,
            pairs,
            seed,
            workers,
            {"classnames": classnames, "templates": templates},
            {"batch_size": batch_size, "time_it": latency, "progress": not quiet},
        )
        name = begun.model_name if begun is not None else str(model)
        found = _of_run(begun, against or []) if begun is not None else [_named(name, device)]
        rows = [test.row(name, *entry) for entry in found]
        if run is not None:
            save_evaluation(rows, run / "evaluation.json")
            record(run, "evaluate", given)
        console().print(rows_table(rows), highlight=False)
        write_json({"rows": rows}, json)


def _named(name: str, device: str) -> Model:
    return "dense", "dense", load_model(name, device=device)


def _of_run(begun: Run, against: list[Rival]) -> Iterator[Model]:
    """All models that are there, one at a time; then the rivals."""
    yield "dense", "dense", begun.load()
    for stage in ("pruned", "distilled"):
        if (begun.folder / stage).exists():
            loaded = load(begun.folder / stage)
            loaded.model.to(begun.device)
            yield "MoPE", stage, loaded
    for rival, loaded in rivals(begun, against):
        yield rival.label, "pruned", loaded
