"""The app: its version, its help, and how its commands fail."""

import os
import warnings
from types import TracebackType
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from .._version import __version__

INTERRUPTED = "Interrupted: the same command goes on from here."
ABOUT = (
    "Makes CLIP-like models smaller: scores the drop of a zero-shot metric without each head, neuron and layer (MoPE)."
)


class OneLineErrors:
    """Turns an error into one line without a traceback, and a warning likewise.

    Exit codes: 2 for wrong usage, 1 for what failed, 130 for an interruption. With ``MOPE_TRACEBACK=1`` errors pass.
    """

    def __enter__(self) -> None:
        self._showwarning = warnings.showwarning
        warnings.showwarning = _show_warning

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        warnings.showwarning = self._showwarning
        if error is None or isinstance(error, typer.Exit | SystemExit):
            return
        if isinstance(error, KeyboardInterrupt | typer.Abort):
            typer.echo(INTERRUPTED, err=True)
            raise typer.Exit(130) from None
        if os.environ.get("MOPE_TRACEBACK"):
            return
        code, text = _described(error)
        typer.echo(f"Error: {' '.join(printable(text).split())}", err=True)
        raise typer.Exit(code) from None


class _Commands(TyperGroup):
    """Commands whose errors are one line; ``distil`` is ``distill``."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return super().get_command(ctx, {"distil": "distill"}.get(cmd_name, cmd_name))

    def invoke(self, ctx: Any) -> Any:
        with OneLineErrors():
            return super().invoke(ctx)


app = typer.Typer(
    name="mope",
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help=ABOUT,
    epilog="In one: mope compress runs/a --model tiny --parameters 50%. Step by step: score, plan, prune, distill, evaluate, "
    "export, report.",
)


def _show_version(wanted: bool) -> bool:
    if wanted:
        typer.echo(f"torch-pruning-mope {__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Options before any command; the app's own help stands for it."""


def printable(text: str) -> str:
    """A text without control characters, which names of files may hold to drive the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def _described(error: BaseException) -> tuple[int, str]:
    """The exit code and the words for an error."""
    from ..errors import NonFiniteError

    if hasattr(
        error, "format_message"
    ):  # of the command line itself; its class is not the same in all versions of Typer
        return int(getattr(error, "exit_code", 2)), error.format_message()
    if isinstance(error, ValueError | TypeError) and not isinstance(error, NonFiniteError):
        return 2, str(error)
    if isinstance(error, OSError | RuntimeError | ImportError | NonFiniteError):
        return 1, str(error) or type(error).__name__
    return 1, f"{type(error).__name__}: {error}. Set MOPE_TRACEBACK=1 to see where."


def _show_warning(message: Any, *_: Any, **__: Any) -> None:
    typer.echo(f"Warning: {' '.join(printable(str(message)).split())}", err=True)
