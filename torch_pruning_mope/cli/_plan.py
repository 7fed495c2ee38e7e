"""``mope plan``: from scores and a budget to what goes."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from ..checkpoint import load_model
from ..dual_encoder import DualEncoder
from ..planning import make_plan, plan_range
from ..scoring import ScoreTable
from ._app import app, one_line_errors, write_json
from ._config import record
from ._options import (
    BUDGETS,
    ConfigOption,
    JsonOption,
    LatencyOption,
    MinHeadsOption,
    MinNeuronsOption,
    MultiplyAddsOption,
    ParametersOption,
    RoundToOption,
    UniformOption,
)
from ._run import Run, budget, multiple, wrapped

OptionalRun = Annotated[
    Path | None, typer.Argument(help="Folder of the run; it keeps everything that the commands make.")
]
ModelInstead = Annotated[
    str | None,
    typer.Option(
        help="A model by name, or a folder, in place of a run: says what budgets it can meet, before anything is scored.",
        show_default=False,
    ),
]


@app.command()
def plan(
    run: OptionalRun = None,
    model: ModelInstead = None,
    parameters: ParametersOption = None,
    multiply_adds: MultiplyAddsOption = None,
    latency: LatencyOption = None,
    round_to: RoundToOption = "1",
    min_heads: MinHeadsOption = 0,
    min_neurons: MinNeuronsOption = 0,
    uniform: UniformOption = False,
    batch_size: Annotated[int, typer.Option(help="Inputs at once, for latency.", rich_help_panel=BUDGETS)] = 1,
    json: JsonOption = None,
    config: ConfigOption = None,
) -> None:
    """Chooses what to remove for a budget, and says what would be left. Without a budget: what budgets can be met."""
    given = dict(locals())
    with one_line_errors():
        if (run is None) == (model is None):
            raise ValueError("one of RUN and --model must be given; found " + ("none." if run is None else "both."))
        budgets: dict[str, Any] = {
            "parameters": budget("--parameters", parameters),
            "multiply_adds": budget("--multiply-adds", multiply_adds),
            "latency": budget("--latency", latency),
        }
        options: dict[str, Any] = {
            "round_to": multiple(round_to),
            "min_heads": min_heads,
            "min_neurons": min_neurons,
            "uniform": uniform,
            "batch_size": batch_size,
        }
        asked = any(amount is not None for amount in budgets.values())
        if run is None:
            _show_range(wrapped(load_model(str(model))), budgets if asked else {}, options, json)
            return
        begun = Run(run)
        encoder = wrapped(begun.load())
        if not asked:
            if (run / "scores.json").exists():
                options["kinds"] = {entry.unit.kind for entry in ScoreTable.load(run / "scores.json").scores}
            _show_range(encoder, {}, options, json)
            return
        table = ScoreTable.load(begun.needs("scores.json", "score"))
        made = make_plan(encoder, table, **budgets, **options)
        made.save(run / "plan.json")
        record(run, "plan", given)
        typer.echo(f"{made}\nplan in {run / 'plan.json'}")
        write_json(asdict(made), json)


def _show_range(encoder: DualEncoder, budgets: dict[str, Any], options: dict[str, Any], json: Path | None) -> None:
    """Prints what budgets can be met; of some budgets, that they can, or raises."""
    found = plan_range(encoder, latency=True, **options)
    typer.echo(str(found))
    write_json(asdict(found), json)
    if budgets:
        found.check(**budgets)
        typer.echo("The budget can be met.")
    else:
        typer.echo("This is what budgets can ask for; give one: --parameters, --multiply-adds or --latency.")
