"""``mope prune``: from a plan to a smaller model."""

from dataclasses import asdict

import typer

from ..planning import Plan
from ._app import app, one_line_errors, write_json
from ._config import record
from ._options import ConfigOption, JsonOption, RunArgument
from ._run import Run, wrapped


@app.command()
def prune(
    run: RunArgument,
    json: JsonOption = None,
    config: ConfigOption = None,
) -> None:
    """Removes what the plan says, exactly, and saves the smaller model."""
    given = dict(locals())
    with one_line_errors():
        begun = Run(run)
        made = Plan.load(begun.needs("plan.json", "plan"))
        encoder = wrapped(begun.load())
        before = encoder.counts()
        made.apply(encoder)
        after = encoder.counts()
        encoder.save_pretrained(run / "pruned", base=begun.model_name)
        record(run, "prune", given)
        typer.echo(
            f"{after.heads} of {before.heads} heads and {after.neurons} of {before.neurons} neurons left\n"
            f"model in {run / 'pruned'}"
        )
        write_json({"before": asdict(before), "after": asdict(after), "model": str(run / "pruned")}, json)
