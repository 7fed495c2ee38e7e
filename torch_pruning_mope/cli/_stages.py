"""``mope pretrain-stage`` and ``mope finetune-stage``: the paper's recipes."""

from dataclasses import dataclass
from typing import Annotated, Any

from ._command import Call, GoesOnArgument, command
from ._options import (
    PairsOption,
    ParametersOption,
    Part,
    QuietOption,
    ReconstructOption,
    RoundToOption,
    Scoring,
    Source,
    Training,
    UniformOption,
    budget,
    budget_option,
    multiple,
    training_option,
)

FinetuneStepsOption = Annotated[int, training_option(help="Steps that the dense model is fine-tuned first.", min=0)]


@dataclass(frozen=True)
class _Stage:
    width: Annotated[
        str | None,
        budget_option(help="Parameters left once heads and neurons have gone: '70%', '100M', 'image=70%,text=80%'."),
    ] = None
    parameters: ParametersOption = None
    round_to: RoundToOption = "1"
    uniform: UniformOption = False
    reconstruct: ReconstructOption = True
    train_pairs: PairsOption = None


@command("pretrain-stage")
def pretrain_command(
    call: Call,
    run: GoesOnArgument,
    stage: _Stage,
    source: Source,
    scoring: Scoring,
    training: Training,
    quiet: QuietOption = False,
) -> None:
    """The paper's pre-training stage: prunes width, then depth, then distils. Goes on where it was interrupted."""
    from ..runs import pretrain_stage

    _run(call, pretrain_stage, stage, source, scoring, training, progress=not quiet)


@command("finetune-stage")
def finetune_command(
    call: Call,
    run: GoesOnArgument,
    stage: _Stage,
    source: Source,
    scoring: Scoring,
    training: Training,
    finetune_steps: FinetuneStepsOption = 0,
    quiet: QuietOption = False,
) -> None:
    """The paper's fine-tuning stage: prunes width, distils, prunes depth, distils. Goes on where it was interrupted."""
    from ..runs import finetune_stage

    _run(call, finetune_stage, stage, source, scoring, training, finetune_steps=finetune_steps, progress=not quiet)


def _run(
    call: Call, function: Any, stage: _Stage, source: Source, scoring: Scoring, training: Training, **options: Any
) -> None:
    """Either stage, and the checkpoint that comes of it."""
    from ._started import Parts

    run = call.given["run"]
    folder = call.folder(run)
    with folder.held():
        loaded = source.load()
        parts = Parts(source, loaded, progress=options["progress"])
        student = function(
            loaded.model,
            parts.scored(),
            parts.batches(Part.train, limit=stage.train_pairs, seed=source.seed, **training.reading()),
            path=call.folder(run, about={"data": parts.digest}),
            width=budget("width", stage.width),
            parameters=budget("parameters", stage.parameters),
            metric=scoring.metric,
            groups=scoring.groups,
            round_to=multiple(stage.round_to),
            uniform=stage.uniform,
            reconstruct=stage.reconstruct,
            cache_teacher=training.cache,
            seed=source.seed,
            **training.arguments(),
            **options,
        )
        if not folder.writes:
            return
        student.save_pretrained(run / "distilled", base=source.model)
    left = student.counts()
    call.say(f"{left.heads} heads and {left.neurons} neurons left", f"model in {run / 'distilled'}")
    call.answer({"heads": left.heads, "neurons": left.neurons, "model": str(run / "distilled")})
