"""The ``mope`` command; each subcommand is a few lines over the library, in a file of its own."""

from typing import Annotated

import typer

# In the order of the help: each registers its command.
from . import (  # isort: skip
    _models,  # noqa: F401
    _score,  # noqa: F401
    _plan,  # noqa: F401
    _prune,  # noqa: F401
    _distil,  # noqa: F401
    _stages,  # noqa: F401
    _evaluate,  # noqa: F401
    _export,  # noqa: F401
    _report,  # noqa: F401
    _rerun,  # noqa: F401
    _demo,  # noqa: F401
)
from ._app import app, show_version

__all__ = ["app"]


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=show_version, is_eager=True)
    ] = False,
) -> None:
    """Makes CLIP-like models smaller: scores what a zero-shot metric loses without each head, neuron and layer (MoPE)."""
