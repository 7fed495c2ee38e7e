"""``mope score``: begins a run."""

from contextlib import nullcontext
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

from ._command import Call, GoesOnArgument, command
from ._options import QuietOption, Scoring, Source, scoring_option

Kind = StrEnum("Kind", ["head", "neurons", "block", "attention", "mlp"])
Interaction = StrEnum("Interaction", ["single", "nested", "greedy", "joint"])


@dataclass(frozen=True)
class _Units:
    kind: Annotated[
        list[Kind] | None, scoring_option(help="Units to score; may be repeated.", show_default="head, neurons, block")
    ] = None
    interaction: Annotated[
        Interaction,
        scoring_option(
            help="single: each unit alone, as in the paper; nested: an MLP's groups together; greedy: heads and blocks "
            "scored again as others go; joint: one order of everything, best for deep cuts, dearest."
        ),
    ] = Interaction.nested
    memory: Annotated[str | None, scoring_option(help="Memory that scoring may use, such as 4GiB.")] = None
    autocast: Annotated[str | None, scoring_option(help="bfloat16 or float16, for speed.")] = None
    estimate: Annotated[bool, scoring_option("--estimate", help="Only say how long it would take.")] = False


@command("score")
def score_command(
    call: Call, run: GoesOnArgument, source: Source, scoring: Scoring, units: _Units, quiet: QuietOption = False
) -> None:
    """Scores heads, neurons and layers by the drop of the metric without them. Goes on where it was interrupted."""
    from ..dual_encoder import DualEncoder
    from ..scoring import estimate_cost, fingerprint, score
    from ._started import Parts

    kinds = tuple(kind.value for kind in units.kind or (Kind.head, Kind.neurons, Kind.block))
    options: dict[str, Any] = {"kinds": kinds, "groups": scoring.groups, "interaction": units.interaction.value}
    folder = call.folder(run)
    with nullcontext() if units.estimate else folder.held():
        loaded = source.load()
        encoder = DualEncoder(loaded.model)
        parts = Parts(source, loaded, progress=not quiet)
        pairs = parts.scored()
        if units.estimate:
            call.say(estimate_cost(encoder, pairs, **options))
            return
        about = {
            "begun_by": "score",
            "weights": fingerprint(encoder.model),
            "pairs": pairs.fingerprint(),
            "data": parts.digest,
        }
        folder.check(about)
        table = score(
            encoder,
            pairs,
            metric=scoring.metric,
            memory=units.memory,
            autocast=units.autocast,  # type: ignore[arg-type]  # checked there
            path=run / "scores.json",
            on_start=lambda: folder.claim(about),
            progress=not quiet,
            **options,
        )
    if folder.writes:
        call.say(table, f"scores of {len(table.scores)} units in {run / 'scores.json'}")
        rows = [
            {"unit": str(entry.unit), "score": entry.value, "stderr": entry.stderr, "parameters": entry.parameters}
            for entry in table.scores
        ]
        call.answer({"metric": table.metric, "dense": table.dense, "scores": rows})
