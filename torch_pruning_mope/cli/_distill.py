"""``mope distill``: recovers a pruned model."""

from dataclasses import dataclass
from typing import Annotated, Any

from ._command import Call, GoesOnArgument, command
from ._options import OtherData, PairsOption, Part, QuietOption, SeedOption, Training, training_option


@dataclass(frozen=True)
class _Objective:
    """The weights of the loss, and what only this command has of training."""

    chunks: Annotated[int, training_option(help="Parts that a batch is run in, to save memory; same gradients.")] = 1
    contrastive: Annotated[float, training_option(help="Weight of the contrastive loss.")] = 1.0
    similarity: Annotated[float, training_option(help="Weight of the teacher's similarities.")] = 1.0
    features: Annotated[float, training_option(help="Weight of the teacher's embeddings.")] = 1000.0
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
