"""``mope compress``: from a name to a smaller model, with its evaluation and its report."""

from dataclasses import asdict, dataclass
from typing import Annotated

import typer

from ._command import Call, GoesOnArgument, command
from ._evaluate import Measuring, rows_of, rows_table
from ._options import (
    Budgets,
    OtherData,
    Part,
    QuietOption,
    Refit,
    Scoring,
    Source,
    budget_option,
    data_option,
    scoring_option,
)
from ._score import Kind


@dataclass(frozen=True)
class _Compression:
    kind: Annotated[
        list[Kind] | None, scoring_option(help="Units that may go; may be repeated.", show_default="head, neurons")
    ] = None
    stages: Annotated[
        str, budget_option(help="'auto', or how many times the model is scored, pruned and reconstructed.")
    ] = "auto"
    reconstruct_pairs: Annotated[
        int | None, typer.Option(help="Images to refit on.", show_default="those scored on")
    ] = None
    time_models: Annotated[bool, typer.Option("--time/--no-time", help="Time the models in the evaluation.")] = True
    test_pairs: Annotated[
        int | None, data_option(help="Images to test on at most.", show_default="all; of emoji 3000")
    ] = None


@command("compress")
def compress_command(
    call: Call,
    run: GoesOnArgument,
    budgets: Budgets,
    source: Source,
    scoring: Scoring,
    compression: _Compression,
    refit: Refit,
    quiet: QuietOption = False,
) -> None:
    """Makes a smaller model without training, in one command: scores, prunes and reconstructs in stages; evaluates; reports.

    Goes on where it was interrupted.
    """
    from ..dual_encoder import DualEncoder
    from ..evaluation import save_evaluation
    from ..report import write_report
    from ..runs import compress
    from ._started import Parts, StartedRun

    folder = call.folder(run)
    with folder.held():
        loaded = source.load()
        dense = DualEncoder(loaded.model)
        parts = Parts(source, loaded, progress=not quiet)
        more = compression.reconstruct_pairs
        small = compress(
            dense,
            parts.scored(),
            kinds=tuple(kind.value for kind in compression.kind or (Kind.head, Kind.neurons)),
            metric=scoring.metric,
            groups=scoring.groups,
            stages=compression.stages if compression.stages == "auto" else int(compression.stages),  # type: ignore[arg-type]
            reconstruct_pairs=None if more is None else parts.pairs(Part.calibration, more),
            path=call.folder(run, about={"data": parts.digest}),
            progress=not quiet,
            **budgets.amounts(),
            **budgets.rules(),
            **asdict(refit),
        )
        if not folder.writes:
            return
        small.save_pretrained(run / "pruned", base=source.model)
        permitted = OtherData(allow_commands=source.allow_commands, follow_links=source.follow_links)
        begun = StartedRun(folder, permitted, progress=not quiet)
        measuring = Measuring(latency=compression.time_models, pairs=compression.test_pairs, seed=source.seed)
        rows = rows_of(begun, measuring, [], progress=not quiet)
        save_evaluation(rows, run / "evaluation.json")
        page = write_report(run)
    before, after = dense.counts(), small.counts()
    call.say(
        f"{after.heads} of {before.heads} heads and {after.neurons} of {before.neurons} neurons left, without training"
    )
    call.show(rows_table(rows))
    call.say(f"model in {run / 'pruned'}", f"page in {page}")
    call.answer({"before": asdict(before), "after": asdict(after), "rows": rows, "model": str(run / "pruned")})
