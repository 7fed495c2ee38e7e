"""``mope distill``, and the paper's recipes ``mope pretrain-stage`` and ``mope finetune-stage``: what is trained."""

from dataclasses import dataclass
from typing import Annotated, Any

from ._command import Call, GoesOnArgument, command
from ._options import (
    OtherData,
    PairsOption,
    ParametersOption,
    Part,
    QuietOption,
    ReconstructOption,
    RoundToOption,
    Scoring,
    SeedOption,
    Source,
    Training,
    UniformOption,
    budget,
    budget_option,
    multiple,
    training_option,
)


@dataclass(frozen=True)
class _Objective:
    """The weights of the loss, and what only this command has of training."""

    chunks: Annotated[int, training_option(help="Parts that a batch is run in, to save memory; same gradients.")] = 1
    contrastive: Annotated[float, training_option(help="Weight of the contrastive loss.")] = 1.0
    similarity: Annotated[float, training_option(help="Weight of the teacher's similarities.")] = 1.0
    features: Annotated[float, training_option(help="Weight of the teacher's embeddings; the paper's is 1000.")] = (
        5000.0
    )
    hidden: Annotated[float, training_option(help="Weight of the teacher's hidden states; the paper's is 1.")] = 0.0
    sigmoid: Annotated[bool, training_option("--sigmoid", help="SigLIP's loss.")] = False
    ema: Annotated[float | None, training_option(help="Average the weights, with this decay, such as 0.999.")] = None
    log_with: Annotated[str | None, training_option(help="A tracker: tensorboard, wandb, …")] = None

    def weights(self) -> dict[str, Any]:
        """Arguments of the loss."""
        return {name: getattr(self, name) for name in ("contrastive", "similarity", "features", "hidden", "sigmoid")}


@command("distill")
def distill_command(
    call: Call,
    run: GoesOnArgument,
    training: Training,
    objective: _Objective,
    other: OtherData,
    pairs: PairsOption = None,
    seed: SeedOption = 0,
    quiet: QuietOption = False,
) -> None:
    """Trains the pruned model towards the outputs of the dense one. Goes on where it was interrupted; torchrun for GPUs."""
    from ..distillation import DistillationLoss, TeacherCache, distill
    from ..dual_encoder import DualEncoder
    from ..runs import TrainingLog
    from ._started import started

    with started(call, run, other, progress=not quiet) as begun:
        student = DualEncoder.from_pretrained(begun.needs("pruned", "prune"))
        student.model.to(begun.source.device)
        loaded = begun.load()
        parts, part = begun.chosen(loaded, Part.train)
        train = parts.batches(part, limit=pairs, seed=seed, **training.reading())
        teacher: Any = DualEncoder(loaded.model)
        if training.cache:
            teacher = TeacherCache.of(teacher, train, path=run / "teacher", hidden=objective.hidden > 0)  # type: ignore[arg-type]
        log = TrainingLog(begun.folder)

        def on_step(entry: Any) -> None:
            if not log.has_begun:  # so nothing was refused
                begun.folder.record()
            log.add(entry)

        history = distill(
            student,
            train,
            teacher=teacher,
            loss=DistillationLoss(**objective.weights()),
            chunks=objective.chunks,
            ema=objective.ema,
            log_with=objective.log_with,
            seed=seed,
            path=run / "training",
            on_step=on_step,
            progress=not quiet,
            **training.arguments(),
        )
        if begun.folder.writes:
            log.finish(history)
            student.save_pretrained(run / "distilled", base=run / "pruned")
    if not begun.folder.writes:
        return
    first, last = history[0].loss, history[-1].loss
    call.say(f"loss {first:.4g} → {last:.4g} in {len(history)} steps", f"model in {run / 'distilled'}")
    call.answer({"steps": len(history), "first": first, "last": last})


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

    _run_stage(call, pretrain_stage, stage, source, scoring, training, progress=not quiet)


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

    _run_stage(
        call, finetune_stage, stage, source, scoring, training, finetune_steps=finetune_steps, progress=not quiet
    )


def _run_stage(
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
