"""``mope export``: a model in a form that others run."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ..checkpoint import load
from ..deploy import export
from ._app import app, one_line_errors, write_json
from ._config import record
from ._options import ConfigOption, JsonOption, RunArgument
from ._run import Run


class Format(StrEnum):
    """Forms."""

    onnx = "onnx"
    torch = "torch"
    executorch = "executorch"
    open_clip = "open_clip"
    transformers = "transformers"


@app.command("export")
def export_command(
    run: RunArgument,
    format: Annotated[  # noqa: A002
        Format,
        typer.Option(
            help="onnx, torch (.pt2) or executorch (.pte, for phones): a file per tower; open_clip or transformers: a stock "
            "model, where all layers kept the same widths and heads."
        ),
    ] = Format.onnx,
    output: Annotated[Path | None, typer.Option(help="Folder to write to.", show_default="RUN/export-FORMAT")] = None,
    json: JsonOption = None,
    config: ConfigOption = None,
) -> None:
    """Writes the latest model in deployment form (q, k and v in one product, what is empty gone), and checks that it agrees."""
    given = dict(locals())
    with one_line_errors():
        begun = Run(run)
        folder = output or run / f"export-{format.value}"
        files = export(load(begun.latest).model, folder, format=format.value)
        record(run, "export", given)
        for file in files:
            typer.echo(f"{file} ({file.stat().st_size / 1e6:.1f} MB)")
        write_json({"files": [str(file) for file in files]}, json)
