"""``mope report``: a run as one page."""

from pathlib import Path
from typing import Annotated

import typer

from ..checkpoint import load
from ..dual_encoder import DualEncoder
from ..report import changed_examples, write_report
from ._app import app, one_line_errors, write_json
from ._config import record
from ._data import Part
from ._options import (
    ConfigOption,
    JsonOption,
    OwnDataOption,
    PairsOption,
    RootOption,
    RunArgument,
    SeedOption,
    SplitOption,
)
from ._run import Run, wrapped


@app.command()
def report(
    run: RunArgument,
    title: Annotated[str | None, typer.Option(help="What the page is called.")] = None,
    examples: Annotated[int, typer.Option(help="Queries to show on which the models differ; 0 for none.", min=0)] = 16,
    data: OwnDataOption = None,
    root: RootOption = None,
    split: SplitOption = None,
    pairs: PairsOption = 500,
    seed: SeedOption = 0,
    output: Annotated[Path | None, typer.Option(help="The file.", show_default="RUN/report.html")] = None,
    json: JsonOption = None,
    config: ConfigOption = None,
) -> None:
    """Writes one self-contained HTML page of what was scored, removed, trained and measured, with figures beside it."""
    given = dict(locals())
    with one_line_errors():
        begun = Run(run)
        found = None
        if examples and ((run / "pruned").exists() or (run / "distilled").exists()):
            loaded = begun.load()
            other = begun.other_data(data, root, split)
            settings, part = (begun.data, Part.test) if other is None else (other, Part.all)
            after = DualEncoder(load(begun.latest).model)
            after.model.to(begun.device)
            shown, captions = settings.with_captions(part, loaded, pairs, seed)
            found = changed_examples(wrapped(loaded), after, shown, count=examples, captions=captions)
        page = write_report(run, output=output, examples=found, title=title)
        record(run, "report", given)
        typer.echo(f"page in {page}")
        write_json({"report": str(page)}, json)
