"""``mope export`` and ``mope report``: a run's model for other runtimes, and the run as one page."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from ._command import Call, RunArgument, command
from ._options import ForceOption, OtherData, PairsOption, Part, SeedOption

SHIPPED = "export-onnx"
"""Folder of a run whose files are evaluated beside its models."""


ExportFormat = StrEnum("ExportFormat", ["onnx", "torch", "executorch", "open_clip", "transformers"])
Quantize = StrEnum("Quantize", ["int8", "fp16"])


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
    quantize: Annotated[
        Quantize | None,
        typer.Option(
            help="int8: static, calibrated on the run's calibration pairs. fp16: half the bytes.", show_default=False
        ),
    ] = None,
    max_drop: Annotated[
        float, typer.Option(help="Points of mean R@1 on the run's test pairs that --quantize may cost.", min=0.0)
    ] = 1.0,
    pairs: Annotated[int, typer.Option(help="Test pairs on which that is measured.", min=2)] = 2000,
    force: ForceOption = False,
) -> None:
    """Writes the latest model in deployment form (q, k and v in one product, nothing empty), and checks that it agrees."""
    from ..checkpoint import load
    from ..deploy import export
    from ._started import started

    with started(call, run) as begun:
        own = f"export-{format.value}"
        target = call.output(run, own)
        if target != run / own and target.exists() and any(target.iterdir()) and not force:
            raise ValueError(f"--output must be an empty folder, or a new one; found files in {target}. Pass --force.")
        loaded = load(begun.latest)
        options: dict[str, Any] = {}
        if quantize is not None:
            parts = begun.parts(loaded)
            options = {"quantize": quantize.value, "pairs": parts.pairs(Part.calibration, 256), "max_drop": max_drop}
            options["test_pairs"] = parts.pairs(Part.test, pairs)
        files = export(loaded, target, format=format.value, **options)  # type: ignore[arg-type]
    for file in files:
        call.say(f"{file} ({file.stat().st_size / 1e6:.1f} MB)")
    call.answer({"files": [str(file) for file in files]})


@command("report")
def report(
    call: Call,
    run: RunArgument,
    other: OtherData,
    title: Annotated[str | None, typer.Option(help="The page's title.")] = None,
    examples: Annotated[int, typer.Option(help="Queries to show on which the models differ; 0 for none.", min=0)] = 16,
    pairs: PairsOption = 500,
    seed: SeedOption = 0,
    output: Annotated[Path | None, typer.Option(help="The file.", show_default="RUN/report.html")] = None,
    force: ForceOption = False,
) -> None:
    """Writes one self-contained HTML page of what was scored, removed, trained and measured; figures go into RUN."""
    from .._io import holds
    from ..dual_encoder import DualEncoder
    from ..report import changed_examples, write_report
    from ..report._write import MARK
    from ._started import started

    with started(call, run, other) as begun:
        target = call.output(run, "report.html")
        if target.exists() and not force and not holds(target, MARK, within=4096):
            raise ValueError(
                f"--output must be new, or a page of this command; found another file at {target}. Pass --force."
            )
        if not target.parent.is_dir():
            raise ValueError(f"--output must be in a folder that exists; found none at {target.parent}.")
        found = None
        if examples and begun.folder.latest is not None:
            loaded = begun.load()
            parts, part = begun.chosen(loaded, Part.test)
            after = DualEncoder(begun.load_saved(begun.latest.name).model)
            shown, captions = parts.with_captions(part, pairs, seed)
            before = DualEncoder(loaded.model)
            found = changed_examples(
                before, after, shown, count=examples, captions=captions, tokenizer=loaded.tokenizer
            )
        page = write_report(run, output=target, examples=found, title=title)
    call.say(f"page in {page}")
    call.answer({"report": str(page)})
