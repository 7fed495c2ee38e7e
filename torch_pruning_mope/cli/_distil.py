"""``mope distill``: brings a pruned model back."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ..distillation import DistillationLoss, TeacherCache, TrainingStep
from ..distillation import distill as train_student
from ..dual_encoder import DualEncoder
from ..report import append_jsonl
from ._app import app, one_line_errors, write_json
from ._config import record
from ._data import Part
from ._options import (
    TRAINING,
    BatchSizeOption,
    ConfigOption,
    InMemoryOption,
    JsonOption,
    LearningRateOption,
    OwnDataOption,
    PairsOption,
    PrecisionOption,
    QuietOption,
    RootOption,
    RunArgument,
    SeedOption,
    ShardOption,
    SplitOption,
    StepsOption,
    WorkersOption,
)
from ._run import Run, first_rank, wrapped


@app.command()
def distill(
    run: RunArgument,
    steps: StepsOption = 1000,
    batch_size: BatchSizeOption = 256,
    learning_rate: LearningRateOption = 2e-5,
    chunks: Annotated[
        int,
        typer.Option(help="Parts that a batch is run in, to save memory; same gradients.", rich_help_panel=TRAINING),
    ] = 1,
    precision: PrecisionOption = "no",
    shard: ShardOption = False,
    contrastive: Annotated[float, typer.Option(help="Weight of the contrastive loss.", rich_help_panel=TRAINING)] = 1.0,
    similarity: Annotated[
        float, typer.Option(help="Weight of the teacher's similarities.", rich_help_panel=TRAINING)
    ] = 1.0,
    features: Annotated[
        float, typer.Option(help="Weight of the teacher's embeddings.", rich_help_panel=TRAINING)
    ] = 1000.0,
    hidden: Annotated[
        float, typer.Option(help="Weight of the teacher's hidden states; the paper's is 1.", rich_help_panel=TRAINING)
    ] = 0.0,
    sigmoid: Annotated[bool, typer.Option("--sigmoid", help="SigLIP's loss.", rich_help_panel=TRAINING)] = False,
    cache: Annotated[
        bool,
        typer.Option(
            "--cache", help="Compute the teacher's outputs once, and keep them on disk.", rich_help_panel=TRAINING
        ),
    ] = False,
    in_memory: InMemoryOption = False,
    workers: WorkersOption = 0,
    ema: Annotated[
        float | None,
        typer.Option(help="Average the weights, with this decay, such as 0.999.", rich_help_panel=TRAINING),
    ] = None,
    log_with: Annotated[
        str | None, typer.Option(help="A tracker: tensorboard, wandb, …", rich_help_panel=TRAINING)
    ] = None,
    data: OwnDataOption = None,
    root: RootOption = None,
    split: SplitOption = None,
    pairs: PairsOption = None,
    seed: SeedOption = 0,
    quiet: QuietOption = False,
    json: JsonOption = None,
    config: ConfigOption = None,
) -> None:
    """Trains the pruned model to do what the whole one does. Goes on where it was interrupted; torchrun for several GPUs."""
    given = dict(locals())
    with one_line_errors():
        begun = Run(run)
        student = DualEncoder.from_pretrained(begun.needs("pruned", "prune"))
        student.model.to(begun.device)
        loaded = begun.load()
        other = begun.other_data(data, root, split)
        settings, part = (begun.data, Part.train) if other is None else (other, Part.all)
        train = settings.batches(
            part, loaded, batch_size, limit=pairs, seed=seed, workers=workers, memory=in_memory or cache
        )
        loss = DistillationLoss(
            contrastive=contrastive, similarity=similarity, features=features, hidden=hidden, sigmoid=sigmoid
        )
        teacher: Any = wrapped(loaded)
        teacher.model.requires_grad_(False)
        if cache:
            teacher = TeacherCache.of(teacher, train, path=run / "teacher", hidden=hidden > 0)  # type: ignore[arg-type]
        history = train_student(
            student,
            train,
            teacher=teacher,
            loss=loss,
            steps=steps,
            batch_size=batch_size,
            chunks=chunks,
            learning_rate=learning_rate,
            precision=precision,  # type: ignore[arg-type]  # checked there
            shard=shard,
            seed=seed,
            ema=ema,
            path=run / "training",
            log_with=log_with,
            progress=not quiet,
        )
        if not first_rank():
            return
        write_log(history, run / "training.jsonl")
        student.save_pretrained(run / "distilled", base=run / "pruned")
        record(run, "distill", given)
        typer.echo(
            f"loss {history[0].loss:.4g} → {history[-1].loss:.4g} in {len(history)} steps\nmodel in {run / 'distilled'}"
        )
        write_json({"steps": len(history), "first": history[0].loss, "last": history[-1].loss}, json)


def write_log(history: list[TrainingStep], path: Path) -> None:
    """Writes every step as a line of JSON.

    Args:
        history: The steps.
        path: The file; replaced.
    """
    path.unlink(missing_ok=True)
    for entry in history:
        append_jsonl(path, entry)
