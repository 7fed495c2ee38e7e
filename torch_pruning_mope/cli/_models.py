"""``mope models``: what can be pruned."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ..evaluation import check_models, families_table
from ._app import app, check_folder, console, one_line_errors, write_json


@app.command()
def models(
    names: Annotated[
        list[str] | None, typer.Argument(help="Configurations of open_clip to wrap; all by default.")
    ] = None,
    json: Annotated[
        Path | None,
        typer.Option(
            help="File for a row per configuration: name, wraps, reason, …", dir_okay=False, callback=check_folder
        ),
    ] = None,
) -> None:
    """Says which families of models work, as measured; given names or --json, wraps configurations of open_clip to see."""
    if json is None and not names:
        console().print(families_table(), highlight=False)
        return
    with one_line_errors():
        checks = []
        for check in check_models(names or None):
            checks.append(check)
            typer.echo(
                f"{check.name}: {'wraps' if check.wraps else 'refused'}{': ' * bool(check.reason)}{check.reason}"
            )
        typer.echo(f"{sum(check.wraps for check in checks)} of {len(checks)} wrap.")
        write_json([asdict(check) for check in checks], json)
