"""``mope plan``: from scores and a budget to what goes."""

from dataclasses import asdict
from typing import Annotated, Any

import typer

from ..planning import make_plan, plan_range
from ..scoring import ScoreTable
from ._app import app, one_line_errors, write_json
from ._config import record
from ._options import BUDGETS, ConfigOption, JsonOption, ParametersOption, RoundToOption, RunArgument
from ._run import Run, budget, multiple, wrapped


@app.command()
def plan(
    run: RunArgument,
    parameters: ParametersOption = None,
    multiply_adds: Annotated[
        str | None, typer.Option(help="Multiply-adds that may be left: '50%', '8G'.", rich_help_panel=BUDGETS)
    ] = None,
    latency: Annotated[
        str | None,
        typer.Option(help="Time on this machine that may be left: '60%', '20ms'; measured.", rich_help_panel=BUDGETS),
    ] = None,
    round_to: RoundToOption = "1",
    min_heads: Annotated[int, typer.Option(help="Heads that every layer keeps.", rich_help_panel=BUDGETS)] = 0,
    min_neurons: Annotated[int, typer.Option(help="Neurons that every layer keeps.", rich_help_panel=BUDGETS)] = 0,
    uniform: Annotated[
        bool, typer.Option("--uniform", help="All layers of a tower keep as much.", rich_help_panel=BUDGETS)
    ] = False,
    batch_size: Annotated[int, typer.Option(help="Inputs at once, for latency.", rich_help_panel=BUDGETS)] = 1,
    json: JsonOption = None,
    config: ConfigOption = None,
) -> None:
    """Chooses what to remove for a budget, and says what would be left. Without a budget: what budgets can be met."""
    given = dict(locals())
    with one_line_errors():
        begun = Run(run)
        encoder = wrapped(begun.load())
        table = ScoreTable.load(begun.needs("scores.json", "score"))
        if parameters is None and multiply_adds is None and latency is None:
            limits: dict[str, Any] = {
                "round_to": multiple(round_to),
                "min_heads": min_heads,
                "min_neurons": min_neurons,
            }
            kinds = {entry.unit.kind for entry in table.scores}
            typer.echo(
                str(plan_range(encoder, kinds=kinds, uniform=uniform, latency=True, batch_size=batch_size, **limits))
            )
            typer.echo("This is what budgets can ask for; give one: --parameters, --multiply-adds or --latency.")
            return
        made = make_plan(
            encoder,
            table,
            parameters=budget("--parameters", parameters),
            multiply_adds=budget("--multiply-adds", multiply_adds),
            latency=budget("--latency", latency),
            round_to=multiple(round_to),
            min_heads=min_heads,
            min_neurons=min_neurons,
            uniform=uniform,
            batch_size=batch_size,
        )
        made.save(run / "plan.json")
        record(run, "plan", given)
        typer.echo(f"{made}\nplan in {run / 'plan.json'}")
        write_json(asdict(made), json)
