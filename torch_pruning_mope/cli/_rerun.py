"""``mope run``: everything that a file says, in its order."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ._app import app, one_line_errors
from ._config import read_config
from ._options import RunArgument


@app.command("run")
def run_command(
    config: Annotated[
        Path, typer.Argument(help="YAML file, or folder of a run, with settings by command.", exists=True)
    ],
    run: RunArgument,
) -> None:
    """Does what a file of settings says, command by command: a run again, or a run of your own."""
    with one_line_errors():
        commands: dict[str, Any] = getattr(typer.main.get_command(app), "commands", {})
        if run.resolve() == (config if config.is_dir() else config.parent).resolve():
            raise ValueError(f"RUN must be another folder than the file's; found {run} for both. Name a new one.")
        names = [name for name in read_config(config) if name != "versions"]
        unknown = [name for name in names if name not in commands or name == "run"]
        if unknown or not names:
            raise ValueError(
                f"CONFIG must have sections called as commands; found {', '.join(unknown) or 'none'} in {config}. "
                f"Commands are {', '.join(commands)}."
            )
    for name in names:
        typer.echo(f"mope {name} {run}")
        commands[name].main([str(run), "--config", str(config)], prog_name=name, standalone_mode=False)
