"""Commands with options in groups: a parameter that is a dataclass stands for an option per field."""

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from ._app import app, printable

if TYPE_CHECKING:
    from rich.table import Table

    from ..runs import RunFolder


@dataclass(frozen=True)
class Call:
    """One call of a command.

    Attributes:
        name: The command.
        given: Its arguments, from flags, files and defaults.
        typed: Names of those that were typed, and come from no file.
    """

    name: str
    given: Mapping[str, Any]
    typed: frozenset[str]

    def folder(self, run: Path, about: Mapping[str, Any] | None = None) -> "RunFolder":
        """The folder of a run, which records this call once the run has accepted it."""
        from ..runs import RunFolder

        settings = {**self.given, "output": self.output(run, "")} if self.given.get("output") else self.given
        return RunFolder(run, command=self.name, settings=settings, about=about)

    def say(self, *lines: object) -> None:
        """Prints for people: to standard error where standard output is the JSON."""
        typer.echo("\n".join(printable(str(line)) for line in lines), err=self._json_is_output)

    def show(self, table: "Table", *notes: str) -> None:
        """Prints a table, likewise; a pipe has no width of its own."""
        from rich.console import Console

        console = Console(stderr=self._json_is_output)
        console = console if console.is_terminal else Console(stderr=self._json_is_output, width=100)
        console.print(table, *notes, sep="\n", highlight=False)

    def answer(self, content: Any) -> None:
        """Writes the result as JSON where ``--json`` says."""
        path: Path | None = self.given.get("json")
        text = json.dumps(content, indent=1)
        if self._json_is_output:
            typer.echo(text)
        elif path is not None:
            from .._io import write_whole

            write_whole(path, text + "\n")

    def output(self, run: Path, default: str, *, name: str = "output") -> Path:
        """The place that a command writes to: where it was typed, anywhere; from a file, within the run's folder."""
        value = self.given.get(name)
        if value is None:
            return run / default
        if name in self.typed:
            return Path(value)
        target = Path(run / value)
        if not target.resolve().is_relative_to(run.resolve()):
            raise ValueError(
                f"{name} in a file must be a path within RUN; found {value}. Give --{name} to write elsewhere."
            )
        return target

    @property
    def _json_is_output(self) -> bool:
        return str(self.given.get("json")) == "-"


def check_folder(path: Path | None) -> Path | None:
    """Refuses a file in a folder that does not exist, before minutes of work rather than after."""
    if path is not None and str(path) != "-" and not path.absolute().parent.is_dir():
        raise typer.BadParameter(f"the folder of {path} does not exist.")
    return path


def _from_file(context: Any, path: Path | None) -> Path | None:
    """The command's defaults from a file; before those of the run itself."""
    if path is not None:
        context.default_map = {**(context.default_map or {}), **_section(context, path)}
    return path


def _from_run(context: Any, run: Path) -> Path:
    """The command's defaults from its last time in this run."""
    if (run / "config.yaml").is_file():
        context.default_map = {**_section(context, run), **(context.default_map or {})}
    return run


def _section(context: Any, path: Path) -> dict[str, Any]:
    """The settings that a file, or the folder of a run, has for a command."""
    from ..runs import NEVER_IN_FILES, SETTINGS, read_settings

    command = context.command.name
    try:
        found = read_settings(path / SETTINGS if path.is_dir() else path).get(command, {})
    except (OSError, ValueError) as error:
        raise typer.BadParameter(str(error)) from error
    known = {str(parameter.name) for parameter in context.command.params} - NEVER_IN_FILES
    if unknown := sorted(found.keys() - known):
        raise typer.BadParameter(
            f"{path} must hold settings of 'mope {command}' under '{command}'; found {', '.join(unknown)}, which it has not, "
            f"or not in a file. It has {', '.join(sorted(known))}."
        )
    return found


RunArgument = Annotated[Path, typer.Argument(help="Folder of the run; it keeps everything that the commands make.")]
OptionalRun = Annotated[Path | None, typer.Argument(help="Folder of the run.")]
GoesOnArgument = Annotated[
    Path,
    typer.Argument(
        help="Folder of the run. Settings that are not given are those of this command's last time in it.",
        callback=_from_run,
        is_eager=True,
    ),
]
JsonOption = Annotated[
    Path | None,
    typer.Option("--json", help="File for the result as JSON; - for standard output.", callback=check_folder),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="YAML file, or folder of another run, with this command's settings; flags go before them.",
        callback=_from_file,
        is_eager=True,
    ),
]
_COMMON = {"json": JsonOption, "config": ConfigOption}


def command(name: str, *, is_of_run: bool = True) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Registers a function as a command: its first parameter is the :class:`Call`. ``--json`` and ``--config`` are added."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(function, include_extras=True)
        _, *own = inspect.signature(function).parameters.values()
        groups = {parameter.name: hints[parameter.name] for parameter in own if is_dataclass(hints[parameter.name])}
        options: list[inspect.Parameter] = []
        for parameter in own:
            group = groups.get(parameter.name)
            if group is None:
                options.append(parameter.replace(annotation=hints[parameter.name], kind=inspect.Parameter.KEYWORD_ONLY))
            else:
                inner = get_type_hints(group, include_extras=True)
                options += [_option(field.name, inner[field.name], field.default) for field in fields(group)]
        options += [_option(own, hint, None) for own, hint in _COMMON.items() if is_of_run or own != "config"]

        def run(context: Any, **given: Any) -> None:
            source = context.get_parameter_source
            typed = frozenset(name for name in given if getattr(source(name), "name", "") == "COMMANDLINE")
            arguments = {parameter.name: given.get(parameter.name) for parameter in own}
            for place, group in groups.items():
                arguments[place] = group(**{field.name: given[field.name] for field in fields(group)})
            function(Call(name, given, typed), **arguments)

        context = inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
        run.__signature__ = inspect.Signature([context, *options])  # type: ignore[attr-defined]
        run.__annotations__ = {"context": typer.Context} | {option.name: option.annotation for option in options}
        app.command(name, help=inspect.getdoc(function))(run)
        return function

    return register


def _option(name: str, hint: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)
