"""The app, and what its commands share: errors without tracebacks, checks of paths, printing."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from .._io import write_whole
from .._version import __version__
from ..errors import MopeError

app = typer.Typer(
    name="mope",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Makes CLIP-like models smaller: scores what a zero-shot metric loses without each head, neuron and layer (MoPE).",
    epilog="A whole run: `mope score runs/a --model tiny`, then `plan`, `prune`, `distill`, `evaluate`, `export`, `report`.",
)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Prints what the user can mend as one line, without a traceback, and exits with code 2.

    Yields:
        Nothing.

    Raises:
        Exit: In place of the error.
    """
    try:
        yield
    except (MopeError, ImportError, NotImplementedError, OSError, TypeError, ValueError) as error:
        typer.echo(f"Error: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(2) from None


def show_version(wanted: bool) -> bool:
    """Prints the version and leaves.

    Args:
        wanted: Whether to.

    Returns:
        The same.

    Raises:
        Exit: After printing.
    """
    if wanted:
        typer.echo(f"torch-pruning-mope {__version__}")
        raise typer.Exit
    return wanted


def check_folder(path: Path | None) -> Path | None:
    """Refuses a file in a folder that does not exist, before minutes of work rather than after.

    Args:
        path: The file.

    Returns:
        The same.

    Raises:
        BadParameter: If there is no such folder.
    """
    if path is not None and str(path) != "-" and not path.absolute().parent.is_dir():
        raise typer.BadParameter(f"the folder of {path} does not exist.")
    return path


def console() -> Console:
    """Where tables are printed; a pipe has no width of its own."""
    own = Console()
    return own if own.is_terminal else Console(width=100)


def write_json(content: Any, path: Path | None) -> None:
    """Writes JSON to a file, or to standard output for ``-``.

    Args:
        content: What ``json`` can hold.
        path: Where to; None for nowhere.
    """
    text = json.dumps(content, indent=1)
    if path is not None and str(path) == "-":
        typer.echo(text)
    elif path is not None:
        write_whole(path, text + "\n")
