"""The training that brings a pruned student back."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch

from ..data import Pairs
from ..encoder import EncoderCore
from ._accelerator import accelerator_for
from ._batches import Batches, check_aligned, drawn, given
from ._cache import TeacherPrecision
from ._distillation import DistillationLoss
from ._loop import Loop, TrainingStep
from ._optimizer import adamw, averaged
from ._shard import Shards
from ._student import Student, has_idle
from ._taught import Teacher, check_teacher

Precision = Literal["no", "bf16", "fp16"]


def distil(
    student: EncoderCore,
    pairs: Batches,
    *,
    teacher: Teacher | None = None,
    teacher_pairs: Pairs | None = None,
    teacher_precision: TeacherPrecision | None = None,
    loss: DistillationLoss | None = None,
    steps: int,
    batch_size: int = 256,
    chunks: int = 1,
    learning_rate: float = 2e-5,
    betas: tuple[float, float] = (0.9, 0.98),
    weight_decay: float = 3e-4,
    warmup: float = 0.1,
    max_norm: float | None = 1.0,
    ema: float | None = None,
    precision: Precision = "no",
    shard: bool = False,
    seed: int = 0,
    path: str | Path | None = None,
    save_every: int | None = None,
    log_with: Any = None,
    on_step: Callable[[TrainingStep], object] = lambda _: None,
    progress: bool = True,
) -> list[TrainingStep]:
    """Mutates the student: trains it, to do what the teacher does if there is one.

    On Accelerate: under ``accelerate launch`` or ``torchrun`` each rank takes its share of every batch, and the loss is that of
    the whole batch. The defaults are those reported for MoPE-CLIP (AdamW, cosine, 10 % of warm-up).

    Args:
        student: The dual encoder, as it is to be trained.
        pairs: Training pairs, of which a batch holds one caption per image: of several, a random one each time. Or batches
            ``(images, tokens)`` of this rank's share, as a DataLoader over WebDataset shards yields them, gone through as
            often as it takes; a run that goes on skips those it has seen. A teacher of another resolution or tokenizer takes
            batches ``(images, tokens, teacher's images, teacher's tokens)``.
        teacher: The teacher, left as it is; or its embeddings of these pairs, or a cache of them on disk, with hidden states if
            they are asked for.
        teacher_pairs: The same pairs as the teacher takes them, if its resolution or tokenizer differs.
        teacher_precision: What the teacher computes in; None for as the student does.
        loss: The objective. By default MoPE-CLIP's with a teacher (without hidden states where only the teacher's embeddings
            are given), else the contrastive loss.
        steps: Optimizer steps.
        batch_size: Pairs of a step, over all ranks; not for batches that come made.
        chunks: Parts that a rank's share of a batch is run in, to save memory; the gradients are the same.
        learning_rate: The highest.
        betas: AdamW's.
        weight_decay: Of matrices; biases, norms and the temperature have none.
        warmup: Share of the steps in which the rate rises.
        max_norm: Gradients are scaled down to this norm; None for as they are.
        ema: Decay of an exponential moving average of the weights, such as 0.999, which is what the student ends with; None for
            the last weights.
        precision: Mixed precision.
        shard: Whether each rank holds a part of the weights, gradients, optimizer and average (FSDP2, torch 2.7), not all. A
            copy is trained, and the student changed in the end, on whatever device it is: leave it on the CPU where it does
            not fit elsewhere. Steps and checkpoints are those of ranks that hold everything. The teacher is whole on every
            rank; with bf16, so are copies of the weights until they are passed backwards.
        seed: Of the order of the pairs, and of what is random in the model.
        path: Folder for checkpoints. With one there, training goes on from it, to the same bits on a CPU.
        save_every: Steps between checkpoints; by default a tenth of all.
        log_with: A tracker that Accelerate knows, such as ``wandb`` or ``tensorboard``, whose files go to ``path / "mope"``; or
            one of your own.
        on_step: Called with every step on the first rank.
        progress: Whether to show a progress bar.

    Returns:
        Every step, those before an interruption too.

    Raises:
        ValueError: If an argument cannot be, or ``path`` holds another run.
        NonFiniteError: If the loss is NaN or infinite; the message names the last checkpoint.
        ImportError: If Accelerate, or a tracker, is not installed.
        NotImplementedError: If Accelerate is configured to shard the model, or torch is too old for ``shard``.
        RuntimeError: If this process would train alone, of several that were launched together.
    """
    _check(
        steps, batch_size, chunks, learning_rate, warmup, ema, pairs.num_images if isinstance(pairs, Pairs) else None
    )
    loss = loss or _default_loss(teacher)
    check_teacher(teacher, pairs, teacher_pairs, loss)
    check_aligned(pairs, teacher_pairs)
    needs_hidden = "hidden" in loss.weights
    if needs_hidden and chunks > 1:
        raise ValueError(f"chunks must be 1 for the term 'hidden', whose states fill the memory; found {chunks}.")
    folder = None if path is None else Path(path)
    about = {
        "steps": steps,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "seed": seed,
        "pairs": pairs.fingerprint() if isinstance(pairs, Pairs) else "batches",
        "weights": loss.weights,
        "shapes": [list(p.shape) for p in student.model.parameters()],
    }
    about |= {} if ema is None else {"ema": ema}
    with accelerator_for(precision, log_with, folder) as accelerator:
        torch.manual_seed(seed + accelerator.process_index)
        shards = _shards(student, accelerator, precision, hidden=needs_hidden, ema=ema) if shard else None
        model = student.model if shards is None else shards.model
        if shards is None and accelerator.num_processes > 1:
            accelerator.ddp_handler.find_unused_parameters = has_idle(student)
        loop = Loop(
            accelerator,
            model,
            shards or Student(student, hidden=needs_hidden),
            adamw(model, learning_rate, betas, weight_decay),
            averaged(model, ema) if shards is None else shards.average,
            loss,
            teacher,
            teacher_precision,
            chunks,
            max_norm,
            folder,
            about,
        )
        loop.take_up()
        config = {name: value for name, value in about.items() if isinstance(value, int | float | str)}
        accelerator.init_trackers("mope", config=config)
        ranks = accelerator.process_index, accelerator.num_processes
        begun = len(loop.history)
        batches = (
            drawn(pairs, teacher_pairs, begun, batch_size, seed, *ranks)
            if isinstance(pairs, Pairs)
            else given(pairs, begun)
        )
        show = progress and accelerator.is_main_process
        loop.run(batches, steps, learning_rate, warmup, save_every or max(1, steps // 10), on_step, show)
        if shards is not None:
            shards.put_back(student)
    return loop.history


def check_training(pairs: Batches, **arguments: Any) -> None:
    """Raises unless training could begin: to know before a long run that ends with it.

    Args:
        pairs: What would be trained on.
        **arguments: Those of :func:`distil` but for the student, the teacher, ``path`` and ``progress``.

    Raises:
        TypeError: If ``steps`` is missing, or there is no such argument.
    """
    known = inspect.signature(distil).parameters
    unknown = sorted(arguments.keys() - known.keys() | arguments.keys() & {"student", "pairs", "teacher"})
    if unknown or "steps" not in arguments:
        raise TypeError(
            f"training must have steps, and arguments of distil alone; found {', '.join(unknown) or 'no steps'}. It takes "
            f"{', '.join(known.keys() - {'student', 'pairs', 'teacher', 'path', 'progress'})}."
        )
    given = {name: arguments.get(name, parameter.default) for name, parameter in known.items()}
    values = {name: given[name] for name in ("steps", "batch_size", "chunks", "learning_rate", "warmup", "ema")}
    _check(**values, images=pairs.num_images if isinstance(pairs, Pairs) else None)


def _shards(student: EncoderCore, accelerator: Any, precision: Precision, *, hidden: bool, ema: float | None) -> Shards:
    """The student in parts."""
    if accelerator.num_processes == 1:
        raise ValueError(
            "shard must be False for one process, which has nobody to share with; found True. Launch several: torchrun "
            "--nproc-per-node 2."
        )
    if precision == "fp16":
        raise ValueError("precision must be 'no' or 'bf16' with shard=True; found 'fp16'. bf16 needs no loss scaling.")
    return Shards(student, accelerator.device, hidden=hidden, ema=ema)


def _default_loss(teacher: Teacher | None) -> DistillationLoss:
    if teacher is None:
        return DistillationLoss(similarity=0.0, features=0.0, hidden=0.0)
    kept = not isinstance(teacher, EncoderCore) and not getattr(teacher, "hidden", False)
    return DistillationLoss(hidden=0.0) if kept else DistillationLoss()


def _check(
    steps: int, batch_size: int, chunks: int, learning_rate: float, warmup: float, ema: float | None, images: int | None
) -> None:
    if ema is not None and not 0 < ema < 1:
        raise ValueError(f"ema must be a decay between 0 and 1, or None; found {ema}. 0.999 is usual.")
    if steps < 1 or chunks < 1 or learning_rate <= 0 or not 0 <= warmup < 1:
        raise ValueError(
            "steps and chunks must be at least 1, learning_rate above 0 and warmup in [0, 1); found "
            f"{steps}, {chunks}, {learning_rate}, {warmup}."
        )
    if images is not None and not 2 <= batch_size <= images:
        raise ValueError(
            f"batch_size must be at least 2 and at most the {images} training images; found {batch_size}. Give more pairs, or "
            "a smaller batch."
        )
