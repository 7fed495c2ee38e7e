"""``mope export``: a model in a form that others run."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ._command import Call, RunArgument, command
from ._options import ForceOption


class ExportFormat(StrEnum):
    """Forms."""

    onnx = "onnx"
    torch = "torch"
    executorch = "executorch"
    open_clip = "open_clip"
    transformers = "transformers"


@command("export")
def export_command(
    call: Call,
    run: RunArgument,
    format: Annotated[  # noqa: A002
        ExportFormat,
        typer.Option(
            help="onnx, torch (.pt2) or executorch (.pte, for phones): a file per tower; open_clip or transformers: a stock "
            "model, where all layers kept the same widths and heads."
        ),
    ] = ExportFormat.onnx,
    output: Annotated[Path | None, typer.Option(help="Folder to write to.", show_default="RUN/export-FORMAT")] = None,
    force: ForceOption = False,
) -> None:
    """Writes the latest model in deployment form (q, k and v in one product, nothing empty), and checks that it agrees."""
    from ..checkpoint import load
    from ..deploy import export
    from ._started import StartedRun

    folder = call.folder(run)
    with folder.held():
        begun = StartedRun(folder)
        own = f"export-{format.value}"
        target = call.output(run, own)
        if target != run / own and target.exists() and any(target.iterdir()) and not force:
            raise ValueError(f"--output must be an empty folder, or a new one; found files in {target}. Pass --force.")
        files = export(load(begun.latest).model, target, format=format.value)
        folder.record()
    for file in files:
        call.say(f"{file} ({file.stat().st_size / 1e6:.1f} MB)")
    call.answer({"files": [str(file) for file in files]})
