"""The training loop that brings a pruned student back."""

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from .._state import evaluation_mode
from ..data import Pairs
from ..encoder import DualEncoder
from ..errors import NonFiniteError
from ._checkpoint import latest_training, load_training, save_training
from ._chunks import chunked_backward
from ._distillation import DistillationLoss, Encoded
from ._student import Student, clamp_temperature
from ._teacher import TeacherEmbeddings

Precision = Literal["no", "bf16", "fp16"]


@dataclass(frozen=True)
class TrainingStep:
    """One step of training.

    Attributes:
        step: Its number, from 1.
        loss: The loss.
        terms: Its terms, not weighted.
        learning_rate: What it was made with.
    """

    step: int
    loss: float
    terms: dict[str, float] = field(default_factory=dict)
    learning_rate: float = 0.0


def distil(
    student: DualEncoder,
    pairs: Pairs | Iterable[tuple[Tensor, Tensor]],
    *,
    teacher: DualEncoder | TeacherEmbeddings | None = None,
    loss: DistillationLoss | None = None,
    steps: int,
    batch_size: int = 256,
    chunks: int = 1,
    learning_rate: float = 2e-5,
    betas: tuple[float, float] = (0.9, 0.98),
    weight_decay: float = 3e-4,
    warmup: float = 0.1,
    max_norm: float | None = 1.0,
    precision: Precision = "no",
    seed: int = 0,
    path: str | Path | None = None,
    save_every: int | None = None,
    log_with: str | None = None,
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
            often as it takes; a run that goes on skips those it has seen.
        teacher: The teacher, left as it is; or its embeddings of these pairs, where no hidden states are asked for.
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
        precision: Mixed precision.
        seed: Of the order of the pairs, and of what is random in the model.
        path: Folder for checkpoints. With one there, training goes on from it, to the same bits on a CPU.
        save_every: Steps between checkpoints; by default a tenth of all.
        log_with: A tracker that Accelerate knows, such as ``tensorboard`` or ``wandb``.
        on_step: Called with every step on the first rank.
        progress: Whether to show a progress bar.

    Returns:
        Every step, those before an interruption too.

    Raises:
        ValueError: If an argument cannot be, or ``path`` holds another run.
        NonFiniteError: If the loss is NaN or infinite; the message names the last checkpoint.
        ImportError: If Accelerate is not installed.
    """
    _check(steps, batch_size, chunks, learning_rate, warmup, pairs.num_images if isinstance(pairs, Pairs) else None)
    loss = loss or _default_loss(teacher)
    needs_hidden = "hidden" in loss.weights
    if needs_hidden and not isinstance(teacher, DualEncoder):
        raise ValueError(
            "teacher must be a DualEncoder for the term 'hidden', whose states are not kept as embeddings are; found "
            f"{type(teacher).__name__}. Pass the teacher, or a DistillationLoss(hidden=0.0)."
        )
    if needs_hidden and chunks > 1:
        raise ValueError(f"chunks must be 1 for the term 'hidden', whose states fill the memory; found {chunks}.")
    if isinstance(teacher, TeacherEmbeddings) and not isinstance(pairs, Pairs):
        raise ValueError("pairs must be Pairs for a teacher's embeddings, which are of fixed pairs; found batches.")
    folder = None if path is None else Path(path)
    accelerator = _accelerator()(mixed_precision=precision, log_with=log_with, project_dir=folder)
    torch.manual_seed(seed + accelerator.process_index)
    module = Student(student, hidden=needs_hidden)
    optimizer = torch.optim.AdamW(_parameters(student.model, weight_decay), lr=learning_rate, betas=betas)
    about = {
        "steps": steps,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "seed": seed,
        "pairs": pairs.fingerprint() if isinstance(pairs, Pairs) else "batches",
        "weights": loss.weights,
        "shapes": [list(p.shape) for p in student.model.parameters()],
    }
    begun, history = 0, list[TrainingStep]()
    if folder is not None and (found := latest_training(folder)) is not None:
        begun, logged = load_training(found, student.model, optimizer, about)
        history = [TrainingStep(**entry) for entry in logged]
    wrapped, optimizer = accelerator.prepare(module, optimizer)
    if log_with is not None:
        accelerator.init_trackers("mope", config={k: v for k, v in about.items() if isinstance(v, int | float | str)})
    wrapped.train()
    batches = _drawn(pairs, begun, batch_size, seed, accelerator) if isinstance(pairs, Pairs) else _given(pairs, begun)
    last: Path | None = None
    show = progress and accelerator.is_main_process
    for step in tqdm(range(begun, steps), initial=begun, total=steps, disable=not show, unit="step"):
        rate = learning_rate * _schedule(step, steps, warmup)
        for group in optimizer.param_groups:
            group["lr"] = rate
        value, terms = _backward(accelerator, wrapped, loss, next(batches), teacher, chunks)
        if not math.isfinite(value):
            raise NonFiniteError(
                f"loss must be finite; found {value} at step {step + 1}. The last checkpoint is {last or 'none'}: lower "
                "learning_rate, or use precision='bf16' rather than 'fp16', and go on from there."
            )
        if max_norm is not None:
            accelerator.clip_grad_norm_(wrapped.parameters(), max_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        clamp_temperature(student.model)
        entry = TrainingStep(step + 1, value, terms, rate)
        history.append(entry)
        if accelerator.is_main_process:
            on_step(entry)
        if log_with is not None:
            accelerator.log({"loss": value, "learning_rate": rate, **terms}, step=step + 1)
        due = (step + 1) % (save_every or max(1, steps // 10)) == 0 or step + 1 == steps
        if folder is not None and due and accelerator.is_main_process:
            last = save_training(
                folder, student.model, optimizer, step + 1, about, [asdict(logged) for logged in history]
            )
        accelerator.wait_for_everyone()
    if log_with is not None:
        accelerator.end_training()
    student.model.eval()
    return history


def check_training(pairs: Pairs | Iterable[tuple[Tensor, Tensor]], **arguments: Any) -> None:
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
    values = {name: given[name] for name in ("steps", "batch_size", "chunks", "learning_rate", "warmup")}
    _check(**values, images=pairs.num_images if isinstance(pairs, Pairs) else None)


@dataclass(frozen=True)
class _Batch:
    """Images and a caption of each; and which of the pairs they are, where that is known."""

    images: Tensor
    tokens: Tensor
    rows: Tensor | None = None
    captions: Tensor | None = None


def _backward(
    accelerator: Any,
    module: nn.Module,
    loss: DistillationLoss,
    batch: _Batch,
    teacher: DualEncoder | TeacherEmbeddings | None,
    chunks: int,
) -> tuple[float, dict[str, float]]:
    """Adds the gradients of a batch, and returns its loss and terms."""
    device = accelerator.device
    images, tokens = batch.images.to(device), batch.tokens.to(device)
    with accelerator.autocast():
        theirs = _taught(teacher, batch, images, tokens, hidden="hidden" in loss.weights)
    if chunks == 1:
        with accelerator.autocast():
            total, found = loss(module(images, tokens), theirs)
        accelerator.backward(total)
        return float(total.detach()), {name: float(term) for name, term in found.items()}
    terms: dict[str, Tensor] = {}

    def encode(part: Tensor) -> Sequence[Tensor]:
        with accelerator.autocast():
            out: Encoded = module(images[part], tokens[part])
        scale = torch.as_tensor(out.logit_scale, device=device, dtype=torch.float32)
        bias = torch.zeros((), device=device) if out.logit_bias is None else torch.as_tensor(out.logit_bias).squeeze()
        return [out.images, out.texts, scale, bias]

    def of_all(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        total: Tensor
        total, found = loss(Encoded(image, text, scale, bias), theirs)
        terms.update(found)
        return total

    sync: Any = getattr(module, "no_sync", None) or nullcontext
    parts = list(torch.arange(len(images), device=device).chunk(chunks))
    value = chunked_backward(encode, parts, of_all, no_sync=sync)
    return float(value), {name: float(term) for name, term in terms.items()}


def _taught(
    teacher: DualEncoder | TeacherEmbeddings | None, batch: _Batch, images: Tensor, tokens: Tensor, *, hidden: bool
) -> Encoded | None:
    """What the teacher makes of a batch."""
    if teacher is None:
        return None
    if isinstance(teacher, TeacherEmbeddings):
        own = teacher.images[batch.rows], teacher.texts[batch.captions]
        return Encoded(own[0].to(images.device), own[1].to(images.device), teacher.logit_scale)
    with torch.no_grad(), evaluation_mode(teacher.model):
        found: Encoded = Student(teacher, hidden=hidden)(images, tokens)
    return found


def _drawn(pairs: Pairs, begun: int, batch_size: int, seed: int, accelerator: Any) -> Iterator[_Batch]:
    """This rank's share of batch after batch; a matter of the seed and the step alone."""
    own = slice(accelerator.process_index, None, accelerator.num_processes)
    per_epoch = pairs.num_images // batch_size
    for step in count(begun):
        epoch, place = divmod(step, per_epoch)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        order = torch.randperm(pairs.num_images, generator=generator)
        ranked = torch.randperm(pairs.num_captions, generator=generator)
        # The last write wins: of an image's captions, the one that comes last in a random order.
        chosen = torch.empty(pairs.num_images, dtype=torch.long)
        chosen[pairs.image_index[ranked]] = ranked
        rows = order[place * batch_size : (place + 1) * batch_size][own]
        yield _Batch(pairs.images[rows], pairs.tokens[chosen[rows]], rows, chosen[rows])


def _given(batches: Iterable[tuple[Tensor, Tensor]], begun: int) -> Iterator[_Batch]:
    """Batch after batch as given, from the beginning again at the end."""
    seen = 0
    while True:
        before = seen
        for images, tokens in batches:
            seen += 1
            if seen > begun:
                yield _Batch(images, tokens)
        if seen == before:
            raise ValueError("pairs must yield batches (images, tokens) as often as they are gone through; found none.")


def _schedule(step: int, steps: int, warmup: float) -> float:
    """Share of the highest learning rate: up in a line, down in half a cosine."""
    rising = max(1, round(warmup * steps))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def _parameters(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [parameter for parameter in trained if parameter.ndim > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trained if parameter.ndim <= 1], "weight_decay": 0.0},
    ]


def _accelerator() -> Any:
    """Accelerate's class, which the extra ``train`` installs."""
    try:
        from accelerate import Accelerator
    except ImportError as error:
        raise ImportError('distil needs Accelerate: pip install "torch-pruning-mope[train]"') from error
    return Accelerator


def _default_loss(teacher: DualEncoder | TeacherEmbeddings | None) -> DistillationLoss:
    if teacher is None:
        return DistillationLoss(similarity=0.0, features=0.0, hidden=0.0)
    return DistillationLoss() if isinstance(teacher, DualEncoder) else DistillationLoss(hidden=0.0)


def _check(steps: int, batch_size: int, chunks: int, learning_rate: float, warmup: float, images: int | None) -> None:
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
