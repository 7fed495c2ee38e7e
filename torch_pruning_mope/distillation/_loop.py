"""The loop of training: step after step, with checkpoints."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from tqdm.auto import tqdm

from ..errors import NonFiniteError
from ._batches import Batch
from ._cache import TeacherPrecision
from ._checkpoint import latest_training, load_training, save_training, training_tensors
from ._chunks import chunked_backward
from ._distillation import DistillationLoss, Encoded
from ._optimizer import schedule, take_average
from ._shard import Shards
from ._student import clamp_temperature
from ._taught import Teacher, taught


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


@dataclass
class Loop:
    """What the steps of training share.

    Attributes:
        accelerator: Accelerate's.
        model: The model that is trained.
        module: What encodes a batch with it: wrapped for data parallelism by :meth:`take_up`, unless it is in shards.
        optimizer: Its optimizer.
        average: The average of its weights, if there is one.
        loss: The objective.
        teacher: The teacher, or what is kept of one; None for none.
        teacher_precision: What the teacher computes in; None for as the student does.
        chunks: Parts that a rank's share of a batch is run in.
        max_norm: Of gradients; None for as they are.
        folder: Where checkpoints are; None for none.
        about: What the run is.
        history: Every step so far.
        last: The last checkpoint, if there is one.
    """

    accelerator: Any
    model: nn.Module
    module: nn.Module
    optimizer: Any
    average: AveragedModel | None
    loss: DistillationLoss
    teacher: Teacher | None
    teacher_precision: TeacherPrecision | None
    chunks: int
    max_norm: float | None
    folder: Path | None
    about: dict[str, Any]
    history: list[TrainingStep] = field(default_factory=list)
    last: Path | None = None

    def take_up(self) -> None:
        """Mutates the model and the optimizer: as they are in the last checkpoint, if there is one; and wraps them."""
        if self.folder is not None and (found := latest_training(self.folder)) is not None:
            _, logged = load_training(found, self.model, self.optimizer, self.about, self.average)
            self.history, self.last = [TrainingStep(**entry) for entry in logged], found
        if isinstance(self.module, Shards):
            return
        if self.average is not None:
            self.average.to(self.accelerator.device)
        self.module, self.optimizer = self.accelerator.prepare(self.module, self.optimizer)

    def run(
        self,
        batches: Iterator[Batch],
        steps: int,
        learning_rate: float,
        warmup: float,
        save_every: int,
        on_step: Callable[[TrainingStep], object],
        show: bool,
    ) -> None:
        """Mutates the model: trains it to the last step, and leaves it in eval mode with its average, if there is one.

        Args:
            batches: One for each step that is left.
            steps: All steps.
            learning_rate: The highest.
            warmup: Share of the steps in which it rises.
            save_every: Steps between checkpoints.
            on_step: Called with every step on the first rank.
            show: Whether to show a progress bar.
        """
        begun = len(self.history)
        self.module.train()
        for step in tqdm(range(begun, steps), initial=begun, total=steps, disable=not show, unit="step"):
            entry = self._step(next(batches), step, learning_rate * schedule(step, steps, warmup))
            self.history.append(entry)
            if self.accelerator.is_main_process:
                on_step(entry)
            values = {"loss": entry.loss, "learning_rate": entry.learning_rate, **entry.terms}
            self.accelerator.log(values, step=step + 1)
            if (step + 1) % save_every == 0 or step + 1 == steps:
                self._save(step + 1)
            self.accelerator.wait_for_everyone()
        take_average(self.model, self.average)
        self.model.eval()

    def _step(self, batch: Batch, step: int, rate: float) -> TrainingStep:
        """Mutates the model: one step of the optimizer."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        value, terms = self._backward(batch)
        if not math.isfinite(value):
            raise NonFiniteError(
                f"loss must be finite; found {value} at step {step + 1}. The last checkpoint is {self.last or 'none'}: lower "
                "learning_rate, or use precision='bf16' rather than 'fp16', and go on from there."
            )
        if isinstance(self.module, Shards):
            self.module.average_gradients()
            if self.max_norm is not None:
                self.module.clip_gradients(self.max_norm)
        elif self.max_norm is not None:
            self.accelerator.clip_grad_norm_(self.module.parameters(), self.max_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        clamp_temperature(self.model)
        if self.average is not None:
            self.average.update_parameters(self.model)
        return TrainingStep(step + 1, value, terms, rate)

    def _save(self, step: int) -> None:
        if self.folder is None:
            return
        first = self.accelerator.is_main_process
        tensors = training_tensors(self.model, self.optimizer, self.average, kept=first)
        if first:
            history = [asdict(entry) for entry in self.history]
            self.last = save_training(self.folder, tensors, step, self.about, history)

    def _backward(self, batch: Batch) -> tuple[float, dict[str, float]]:
        """Adds the gradients of a batch, and returns its loss and terms."""
        accelerator, module, loss = self.accelerator, self.module, self.loss
        device = accelerator.device
        images, tokens = batch.images.to(device), batch.tokens.to(device)
        theirs = taught(self.teacher, batch, accelerator, self.teacher_precision, hidden="hidden" in loss.weights)
        if self.chunks == 1:
            with accelerator.autocast():
                out: Encoded = module(images, tokens)
                total, found = loss(out, theirs)
                total = _touching(total, out)
            accelerator.backward(total)
            return float(total.detach()), {name: float(term) for name, term in found.items()}
        terms: dict[str, Tensor] = {}

        def encode(part: Tensor) -> Sequence[Tensor]:
            with accelerator.autocast():
                out: Encoded = module(images[part], tokens[part])
            scale = torch.as_tensor(out.logit_scale, device=device, dtype=torch.float32)
            bias = (
                torch.zeros((), device=device) if out.logit_bias is None else torch.as_tensor(out.logit_bias).squeeze()
            )
            return [out.images, out.texts, scale, bias]

        scaler = accelerator.scaler  # of fp16

        def of_all(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
            whole: Tensor
            joined = Encoded(image, text, scale, bias)
            whole, parts = loss(joined, theirs)
            terms.update(parts)
            whole = _touching(whole, joined)
            return whole if scaler is None else scaler.scale(whole)

        # Of shards, each chunk's gradients are summed up at once: whole ones would have to be kept otherwise.
        sync: Any = getattr(module, "no_sync", None) or nullcontext
        value = chunked_backward(
            encode, list(torch.arange(len(images), device=device).chunk(self.chunks)), of_all, no_sync=sync
        )
        scale = 1.0 if scaler is None else scaler.get_scale()
        return float(value) / scale, {name: float(term) for name, term in terms.items()}


def _touching(total: Tensor, out: Encoded) -> Tensor:
    """A loss that depends on temperature and bias, if only by nothing: DDP waits for gradients of all that is returned."""
    numbers = [each for each in (out.logit_scale, out.logit_bias) if isinstance(each, Tensor) and each.requires_grad]
    return total + 0.0 * torch.stack([each.float().sum() for each in numbers]).sum() if numbers else total
