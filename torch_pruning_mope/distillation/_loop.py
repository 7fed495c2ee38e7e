"""Training loop: step after step, with checkpoints."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import tqdm

from ..errors import NonFiniteError
from ..scoring import Ranks
from ._batches import Batch
from ._cache import TeacherPrecision
from ._checkpoint import load_training, save_training
from ._chunks import chunked_backward
from ._loss import DistillationLoss, Encoded
from ._shard import Shards
from ._student import clamp_temperature
from ._teacher import Teacher, run_teacher


def schedule(step: int, steps: int, warmup: float) -> float:
    """Share of the highest learning rate: a linear rise over ``warmup`` of the steps, then half a cosine."""
    rising = max(1, round(warmup * steps))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def adamw(model: nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW of the parameters that require gradients; biases, norms and the temperature do not decay."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [parameter for parameter in trained if parameter.ndim > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trained if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98))


def averaged(model: nn.Module, decay: float | None) -> AveragedModel | None:
    """Exponential moving average of a model's weights, from those after the first step on."""
    return None if decay is None else AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))


@torch.no_grad()
def take_average(model: nn.Module, average: AveragedModel | None) -> None:
    """Mutates ``model``: its weights become their average, if there is one."""
    if average is not None:
        for own, mean in zip(model.parameters(), average.module.parameters(), strict=True):
            own.copy_(mean)


@dataclass(frozen=True)
class TrainingStep:
    """One step of training.

    Attributes:
        step: Its number, from 1.
        loss: The loss.
        terms: Its terms, not weighted.
        learning_rate: The learning rate of the step.
    """

    step: int
    loss: float
    terms: dict[str, float] = field(default_factory=dict)
    learning_rate: float = 0.0


@dataclass
class Loop:
    """State of one training; ``module`` encodes a batch with ``model``, and ``key`` is all that the numbers depend on."""

    accelerator: Any
    ranks: Ranks
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
    key: dict[str, Any]
    history: list[TrainingStep] = field(default_factory=list)
    saved: str = "none"

    def resume(self) -> None:
        """Mutates model and optimizer to the last checkpoint, if there is one, and wraps them."""
        if self.folder is not None:
            logged = load_training(self.folder, self.modules, self.optimizer, self.key, self.ranks)
            self.history = [TrainingStep(**entry) for entry in logged]
            self._note(self.folder)
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
        """Mutates the model: trains it to the last step; its average, if there is one, takes its place. Ends in eval mode."""
        begun = len(self.history)
        self.module.train()
        try:
            for step in tqdm(range(begun, steps), initial=begun, total=steps, disable=not show, unit="step"):
                entry = self._step(next(batches), step, learning_rate * schedule(step, steps, warmup))
                self.history.append(entry)
                if self.accelerator.is_main_process:
                    on_step(entry)
                values = {"loss": entry.loss, "learning_rate": entry.learning_rate, **entry.terms}
                self.accelerator.log(values, step=step + 1)
                if self.folder is not None and ((step + 1) % save_every == 0 or step + 1 == steps):
                    entries = [asdict(entry) for entry in self.history]
                    save_training(self.folder, self.modules, self.optimizer, self.key, entries, self.ranks)
                    self._note(self.folder)
            take_average(self.model, self.average)
        finally:
            self.model.eval()

    def _step(self, batch: Batch, step: int, rate: float) -> TrainingStep:
        """Mutates the model: one step of the optimizer."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        value, terms = self._backward(batch)
        if not math.isfinite(value):
            raise NonFiniteError(
                f"loss must be finite; found {value} at step {step + 1}. The last checkpoint is {self.saved}: lower "
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

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The modules that checkpoints hold."""
        return {"model": self.model} | ({} if self.average is None else {"average": self.average})

    def _note(self, folder: Path) -> None:
        self.saved = f"that of step {len(self.history)} in {folder}" if self.history else "none"

    def _backward(self, batch: Batch) -> tuple[float, dict[str, float]]:
        """Adds the gradients of a batch; returns its loss and terms."""
        accelerator, module, loss = self.accelerator, self.module, self.loss
        device = accelerator.device
        images, tokens = batch.images.to(device), batch.tokens.to(device)
        theirs = run_teacher(self.teacher, batch, accelerator, self.teacher_precision, hidden="hidden" in loss.weights)
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
    """Adds nothing to a loss that depends on temperature and bias: DDP waits for gradients of all that is returned."""
    numbers = [each for each in (out.logit_scale, out.logit_bias) if isinstance(each, Tensor) and each.requires_grad]
    return total + 0.0 * torch.stack([each.float().sum() for each in numbers]).sum() if numbers else total
