"""``mope run``: everything that a file says, in its order."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ._app import app
from ._command import RunArgument
from ._options import AllowCommandsOption, FollowLinksOption


@app.command("run")
def run_command(
    config: Annotated[
        Path, typer.Argument(help="YAML file, or folder of a run, with settings by command.", exists=True)
    ],
    run: RunArgument,
    allow_commands: AllowCommandsOption = False,
    follow_links: FollowLinksOption = False,
) -> None:
    """Does what a file of settings says, command by command: a run again, or a run of your own. Stops at the first failure."""
    from ..runs import SETTINGS, read_settings

    commands: dict[str, Any] = getattr(typer.main.get_command(app), "commands", {})
    if run.resolve() == (config if config.is_dir() else config.parent).resolve():
        raise ValueError(f"RUN must be another folder than the file's; found {run} for both. Name a new one.")
    found = read_settings(config / SETTINGS if config.is_dir() else config)
    names = [name for name in found if name != "versions"]
    unknown = [name for name in names if name not in commands or name == "run"]
    if unknown or not names:
        raise ValueError(
            f"CONFIG must have sections called as commands; found {', '.join(unknown) or 'none'} in {config}. "
            f"Commands are {', '.join(commands)}."
        )
    permitted = {"allow_commands": allow_commands, "follow_links": follow_links}
    for name in names:
        typer.echo(f"mope {name} {run}")
        known = {parameter.name for parameter in commands[name].params}
        flags = [f"--{flag.replace('_', '-')}" for flag, given in permitted.items() if given and flag in known]
        # Not main(), which would turn a failure into an exit code that nobody reads.
        with commands[name].make_context(name, [str(run), "--config", str(config), *flags]) as context:
            commands[name].invoke(context)
