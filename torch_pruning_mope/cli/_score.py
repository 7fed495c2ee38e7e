"""``mope score``: begins a run."""

from enum import StrEnum
from typing import Annotated, Any

import typer

from ..scoring import ScoreTable, estimate_cost, score
from ._app import app, one_line_errors, write_json
from ._config import record
from ._options import (
    SCORING,
    CalibrationOption,
    CaptionKeyOption,
    ConfigOption,
    DataOption,
    DeviceOption,
    GroupsOption,
    ImageKeyOption,
    JsonOption,
    MaxSkippedOption,
    MetricOption,
    ModelOption,
    PairsOption,
    QuietOption,
    RootOption,
    RunArgument,
    SeedOption,
    SplitOption,
    SplitSeedOption,
    TestOption,
)
from ._run import Run, first_rank, wrapped


class Kind(StrEnum):
    """What can be scored."""

    head = "head"
    neurons = "neurons"
    block = "block"
    attention = "attention"
    mlp = "mlp"


class Interaction(StrEnum):
    """How removals are combined."""

    single = "single"
    nested = "nested"
    greedy = "greedy"
    joint = "joint"


KindOption = Annotated[
    list[Kind] | None,
    typer.Option(help="What to score; may be repeated.", show_default="head, neurons, block", rich_help_panel=SCORING),
]
InteractionOption = Annotated[
    Interaction,
    typer.Option(
        help="single: each unit alone, as in the paper; nested: an MLP's groups together; greedy: heads and blocks "
        "scored again as others go; joint: one order of everything, best for deep cuts, dearest.",
        rich_help_panel=SCORING,
    ),
]
MemoryOption = Annotated[str | None, typer.Option(help="What scoring may use, such as 4GiB.", rich_help_panel=SCORING)]
AutocastOption = Annotated[str | None, typer.Option(help="bfloat16 or float16, for speed.", rich_help_panel=SCORING)]
EstimateOption = Annotated[
    bool, typer.Option("--estimate", help="Only say how long it would take.", rich_help_panel=SCORING)
]


@app.command("score")
def score_command(
    run: RunArgument,
    model: ModelOption = "tiny",
    data: DataOption = "emoji",
    root: RootOption = None,
    split: SplitOption = None,
    image_key: ImageKeyOption = None,
    caption_key: CaptionKeyOption = None,
    calibration: CalibrationOption = 0.1,
    test: TestOption = 0.1,
    split_seed: SplitSeedOption = 0,
    max_skipped: MaxSkippedOption = 0.1,
    pairs: PairsOption = None,
    seed: SeedOption = 0,
    metric: MetricOption = "contrastive_loss",
    kind: KindOption = None,
    groups: GroupsOption = 16,
    interaction: InteractionOption = Interaction.nested,
    memory: MemoryOption = None,
    autocast: AutocastOption = None,
    estimate: EstimateOption = False,
    device: DeviceOption = "cpu",
    quiet: QuietOption = False,
    json: JsonOption = None,
    config: ConfigOption = None,
) -> None:
    """Scores heads, neurons and layers: what the metric loses without them. Goes on where it was interrupted."""
    given = dict(locals())
    with one_line_errors():
        kinds = tuple(entry.value for entry in kind or (Kind.head, Kind.neurons, Kind.block))
        record(run, "score", given)
        begun = Run(run)
        loaded = begun.load()
        encoder = wrapped(loaded)
        calibrated = begun.calibration(loaded)
        options: dict[str, Any] = {"kinds": kinds, "groups": groups, "interaction": interaction.value}
        if estimate:
            typer.echo(str(estimate_cost(encoder, calibrated, **options)))
            return
        table = score(
            encoder,
            calibrated,
            metric=metric,
            memory=memory,
            autocast=autocast,  # type: ignore[arg-type]  # checked there
            path=run / "scores.json",
            progress=not quiet,
            **options,
        )
        if not first_rank():
            return
        typer.echo(f"{table}\nscores of {len(table.scores)} units in {run / 'scores.json'}")
        write_json(summary(table), json)


def summary(table: ScoreTable) -> dict[str, Any]:
    """The scores in brief.

    Args:
        table: The table.

    Returns:
        What JSON holds.
    """
    return {
        "metric": table.metric,
        "dense": table.dense,
        "scores": [
            {"unit": str(entry.unit), "score": entry.value, "stderr": entry.stderr, "parameters": entry.parameters}
            for entry in table.scores
        ],
    }
