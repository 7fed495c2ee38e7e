"""``mope evaluate``: what a model retrieves and classifies."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from ..checkpoint import load
from ..evaluation import evaluate, save_evaluation
from ..names import LoadedModel, load_model
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
from ._run import Run
from ._table import rows_table

STAGES = ("dense", "pruned", "distilled")


class Task(StrEnum):
    """What is measured."""

    retrieval = "retrieval"
    zero_shot = "zero-shot"


@app.command("evaluate")
def evaluate_command(
    run: Annotated[
        Path | None, typer.Argument(help="Folder of a run: its dense, pruned and distilled models are evaluated.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="A model by name, or a folder, in place of a run.", show_default=False)
    ] = None,
    task: Annotated[
        Task, typer.Option(help="Retrieval of pairs, or classification of labelled images.")
    ] = Task.retrieval,
    data: OwnDataOption = None,
    root: RootOption = None,
    split: SplitOption = None,
    part: PartOption = Part.test,
    pairs: PairsOption = None,
    classnames: Annotated[
        Path | None,
        typer.Option(help="File with a class name a line, for zero-shot; else folders' names.", rich_help_panel=DATA),
    ] = None,
    templates: Annotated[
        str, typer.Option(help="Prompts of zero-shot: open_clip (80), simple (7).", rich_help_panel=DATA)
    ] = "open_clip",
    batch_size: Annotated[int, typer.Option(help="Inputs at once.", min=1)] = 64,
    workers: Annotated[int, typer.Option(help="Processes that read images.")] = 0,
    latency: Annotated[bool, typer.Option("--latency", help="Measure the latency at batch 1 too.")] = False,
    device: DeviceOption = "cpu",
    seed: SeedOption = 0,
    quiet: QuietOption = False,
    json: JsonOption = None,
    config: ConfigOption = None,
) -> None:
    """Measures recall both ways, or zero-shot accuracy, of every model of a run, or of any one model."""
    given = dict(locals())
    with one_line_errors():
        if (run is None) == (model is None):
            raise ValueError("one of RUN and --model must be given; found " + ("none." if run is None else "both."))
        begun = None if run is None else Run(run)
        other = DataSettings(data, root, split) if data is not None else None
        if begun is not None:
            other = begun.other_data(data, root, split)
        settings = other or (begun.data if begun is not None else DataSettings())
        chosen = part if other is None or other.data == EMOJI else Part.all
        options: dict[str, Any] = {"batch_size": batch_size, "time_it": latency, "progress": not quiet}
        rows = []
        for stage, loaded in _models(begun, model, device):
            if task is Task.retrieval:
                found: Any = (
                    settings.pairs(chosen, loaded, pairs, seed)
                    if settings.data == EMOJI
                    else settings.dataset(chosen, loaded)
                )
                own: dict[str, Any] = {"limit": pairs, "num_workers": workers}
            else:
                found = settings.data
                own = {"task": "zero_shot", "classnames": classnames, "templates": templates, "num_workers": workers}
            label = model or f"{begun.model_name if begun else ''}"
            row = evaluate(
                loaded,
                found,
                label=label,
                criterion="dense" if stage == "dense" else "MoPE",
                stage=stage,
                **own,
                **options,
            )
            rows.append({**row, "data": settings.data, "part": chosen.value})
        if run is not None:
            save_evaluation(rows, run / "evaluation.json")
            record(run, "evaluate", given)
        console().print(rows_table(rows), highlight=False)
        write_json({"rows": rows}, json)


def _models(begun: Run | None, model: str | None, device: str) -> list[tuple[str, LoadedModel]]:
    """Stage and model of all that are there."""
    if begun is None:
        return [("dense", load_model(str(model), device=device))]
    found = [("dense", begun.load())]
    for stage in STAGES[1:]:
        if (begun.folder / stage).exists():
            loaded = load(begun.folder / stage)
            loaded.model.to(begun.device)
            found.append((stage, loaded))
    return found
