"""Training that recovers a pruned student."""

import hashlib
import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import torch

from .._fingerprint import fingerprint
from .._io import hold
from ..data import Pairs
from ..encoder import EncoderCore
from ..scoring import Ranks
from ._accelerator import accelerator_for
from ._batches import Batches, check_aligned, drawn, given
from ._cache import TeacherPrecision
from ._loop import Loop, TrainingStep, adamw, averaged
from ._loss import DistillationLoss
from ._shard import Shards
from ._student import Student, has_idle
from ._teacher import Teacher, check_teacher

Precision = Literal["no", "bf16", "fp16"]


def distill(
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
    """Mutates the student: trains it, towards the outputs of a teacher if one is given.

    Runs on Accelerate: under ``accelerate launch`` or ``torchrun`` each rank takes its share of every batch, and the loss is
    that of the whole batch. AdamW, linear warm-up and cosine decay are those reported for MoPE-CLIP (arXiv 2403.07839).

    Args:
        student: The dual encoder to train; only parameters with ``requires_grad`` change.
        pairs: Training pairs, of which a batch holds one caption per image, drawn anew each epoch. Or batches
            ``(images, tokens)`` of this rank's share, as a DataLoader over WebDataset shards yields them, iterated as often
            as needed; a resumed run skips those it has seen. A teacher of another resolution or tokenizer takes batches
            ``(images, tokens, teacher's images, teacher's tokens)``.
        teacher: The teacher, left as it is, or a cache of its outputs on these pairs.
        teacher_pairs: The same pairs as the teacher takes them, if its resolution or tokenizer differs.
        teacher_precision: Autocast of the teacher; None for the student's.
        loss: The objective; by default ``DistillationLoss()`` with a teacher, the contrastive loss without.
        steps: Optimizer steps.
        batch_size: Pairs of a step, over all ranks; ignored for given batches.
        chunks: Parts that a rank's share of a batch is run in, to save memory; the gradients are the same.
        learning_rate: The highest. The default is that reported for ViT-L/14; small models take more: 5e-4 for the tiny CLIP.
        weight_decay: Of matrices; biases, norms and the temperature have none.
        warmup: Share of the steps in which the rate rises.
        max_norm: Largest norm of the gradients; None for no clipping.
        ema: Decay of an exponential moving average of the weights, such as 0.999, with which the student ends; None for the
            last weights.
        precision: Mixed precision.
        shard: Each rank holds a part of the weights, gradients, optimizer and average (FSDP2, torch 2.7). A copy is trained,
            and the student changed at the end, on whatever device it is: leave it on the CPU where it does not fit
            elsewhere. Steps and checkpoints equal those of ranks that hold everything. The teacher is whole on every rank;
            with bf16, so are copies of the weights until they are passed backwards.
        seed: Of the order of the pairs, and of what is random in the model.
        path: Folder of checkpoints. Training resumes from one of the same run, to the same bits on a CPU; one of any other
            student, teacher, data or setting is refused. Only the first rank reads and writes it.
        save_every: Steps between checkpoints; by default a tenth of all.
        log_with: A tracker that Accelerate knows, such as ``wandb`` or ``tensorboard``, whose files go to ``path / "mope"``; or
            one of your own.
        on_step: Called with every step on the first rank.
        progress: Show a progress bar.

    Returns:
        All steps, those before an interruption included.

    Raises:
        ValueError: If an argument is out of its range, differs between ranks, or ``path`` holds another run.
        FolderInUseError: If another training writes to ``path``.
        NonFiniteError: If the loss is NaN or infinite; the message names the last checkpoint.
        ImportError: If a tracker is not installed.
        NotImplementedError: If Accelerate is configured to shard the model, or torch is too old for ``shard``.
        RuntimeError: If this process would train alone, of several that were launched together.
    """
    _check(steps, batch_size, chunks, learning_rate, warmup, ema, pairs)
    loss = loss or (DistillationLoss(similarity=0.0, features=0.0) if teacher is None else DistillationLoss())
    check_teacher(teacher, pairs, teacher_pairs, loss)
    check_aligned(pairs, teacher_pairs)
    needs_hidden = "hidden" in loss.weights
    if needs_hidden and chunks > 1:
        raise ValueError(f"chunks must be 1 for the term 'hidden', whose states fill the memory; found {chunks}.")
    settings = {
        "steps": steps,
        "batch_size": batch_size,
        "chunks": chunks,
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
        "warmup": warmup,
        "max_norm": max_norm,
        "ema": ema,
        "precision": precision,
        "teacher_precision": teacher_precision,
        "seed": seed,
        "loss": [type(loss).__qualname__, loss.weights, loss.sigmoid],
    }
    folder = None if path is None else Path(path)
    with accelerator_for(precision, log_with, folder) as accelerator, _together(settings, folder) as ranks:
        key = {} if folder is None else settings | _identities(student, teacher, pairs, teacher_pairs)
        torch.manual_seed(seed + accelerator.process_index)
        shards = _shards(student, accelerator, precision, hidden=needs_hidden, ema=ema) if shard else None
        model = student.model if shards is None else shards.model
        if shards is None and accelerator.num_processes > 1:
            accelerator.ddp_handler.find_unused_parameters = has_idle(student)
        loop = Loop(
            accelerator,
            ranks,
            model,
            shards or Student(student, hidden=needs_hidden),
            adamw(model, learning_rate, weight_decay),
            averaged(model, ema) if shards is None else shards.average,
            loss,
            teacher,
            teacher_precision,
            chunks,
            max_norm,
            folder,
            key,
        )
        loop.resume()
        accelerator.init_trackers("mope", {name: v for name, v in settings.items() if isinstance(v, int | float | str)})
        begun = len(loop.history)
        batches = (
            drawn(pairs, teacher_pairs, begun, batch_size, seed, ranks.rank, ranks.world)
            if isinstance(pairs, Pairs)
            else given(pairs, begun)
        )
        show = progress and accelerator.is_main_process
        loop.run(batches, steps, learning_rate, warmup, save_every or max(1, steps // 10), on_step, show)
        if shards is not None:
            shards.put_back(student)
    return loop.history


def check_training(pairs: Batches, **arguments: Any) -> None:
    """Raises unless training could begin; called before a long run that ends with it."""
    try:
        given = inspect.signature(distill).bind(None, pairs, teacher=None, **arguments)
    except TypeError as error:
        raise TypeError(f"training must have steps, and arguments of distill alone; found: {error}.") from None
    given.apply_defaults()
    names = ("steps", "batch_size", "chunks", "learning_rate", "warmup", "ema")
    _check(**{name: given.arguments[name] for name in names}, pairs=pairs)


@contextmanager
def _together(settings: dict[str, Any], folder: Path | None) -> Iterator[Ranks]:
    """The ranks that train together, once they agree on the settings, and the first holds the folder."""
    ranks, held = Ranks(), ExitStack()
    try:
        ranks.check_same(**settings)
        if folder is not None:
            ranks.from_first(lambda: held.enter_context(hold(folder, "distill")))
        yield ranks
    finally:
        held.close()
        ranks.close()


def _identities(
    student: EncoderCore, teacher: Teacher | None, pairs: Batches, teacher_pairs: Pairs | None
) -> dict[str, Any]:
    """All that the numbers depend on besides the settings; given batches have no identity."""
    return {
        "student": _identity(student),
        "frozen": [name for name, parameter in student.model.named_parameters() if not parameter.requires_grad],
        "teacher": _identity(teacher) if isinstance(teacher, EncoderCore) else getattr(teacher, "about", None),
        "pairs": pairs.fingerprint() if isinstance(pairs, Pairs) else "batches",
        "teacher_pairs": None if teacher_pairs is None else teacher_pairs.fingerprint(),
    }


def _identity(encoder: EncoderCore) -> list[str]:
    """Digests of a model's weights and of its architecture, activations included, without addresses in memory."""
    architecture = re.sub(r" at 0x[0-9a-f]+", "", repr(encoder.model))
    return [fingerprint(encoder.model), hashlib.sha256(architecture.encode()).hexdigest()]


def _shards(student: EncoderCore, accelerator: Any, precision: Precision, *, hidden: bool, ema: float | None) -> Shards:
    if accelerator.num_processes == 1:
        raise ValueError(
            "shard must be False for one process, which has nobody to share with; found True. Launch several: torchrun "
            "--nproc-per-node 2."
        )
    if precision == "fp16":
        raise ValueError("precision must be 'no' or 'bf16' with shard=True; found 'fp16'. bf16 needs no loss scaling.")
    return Shards(student, accelerator.device, hidden=hidden, ema=ema)


def _check(
    steps: int, batch_size: int, chunks: int, learning_rate: float, warmup: float, ema: float | None, pairs: Batches
) -> None:
    if ema is not None and not 0 < ema < 1:
        raise ValueError(f"ema must be a decay between 0 and 1, or None; found {ema}. 0.999 is usual.")
    if steps < 1 or chunks < 1 or learning_rate <= 0 or not 0 <= warmup < 1:
        raise ValueError(
            "steps and chunks must be at least 1, learning_rate above 0 and warmup in [0, 1); found "
            f"{steps}, {chunks}, {learning_rate}, {warmup}."
        )
    if isinstance(pairs, Pairs) and not 2 <= batch_size <= pairs.num_images:
        raise ValueError(
            f"batch_size must be at least 2 and at most the {pairs.num_images} training images; found {batch_size}. Give more "
            "pairs, or a smaller batch."
        )
