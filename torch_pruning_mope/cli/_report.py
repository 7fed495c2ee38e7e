"""``mope report``: a run as one page."""

from pathlib import Path
from typing import Annotated

import typer

from ._command import Call, RunArgument, command
from ._options import ForceOption, PairsOption, SeedOption
from ._source import OtherData, Part

MARK = b'<meta name="generator" content="torch-pruning-mope'


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
    from ..dual_encoder import DualEncoder
    from ..report import changed_examples, write_report
    from ._started import started

    with started(call, run, other) as begun:
        target = call.output(run, "report.html")
        if target.exists() and not force and not _is_ours(target):
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


def _is_ours(file: Path) -> bool:
    if not file.is_file():
        return False
    with file.open("rb") as opened:
        return MARK in opened.read(4096)
