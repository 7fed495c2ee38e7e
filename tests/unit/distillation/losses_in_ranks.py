"""Every loss of one batch, shared out over the ranks there are."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from torch_pruning_mope.distillation import DistillationLoss, Encoded
from torch_pruning_mope.distillation._chunks import chunked_backward

from .terms import features, hidden, info_nce, sigmoid, similarity

OWNER = torch.tensor([0, 2, 1, 0, 2, 3, 4, 4, 5])
"""Captions 0 to 4 are of images 0 to 2, the last of image 5 alone: where the splits below cut."""

SPLITS = {"even": ((3, 3), (5, 4)), "uneven": ((5, 1), (8, 1)), "one has nothing": ((6, 0), (9, 0))}
"""Images and captions of each of two ranks."""


class Student(nn.Module):
    """Linear towers, a temperature and a bias."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.image, self.text = nn.Linear(6, 5), nn.Linear(7, 5)
        self.logit_scale, self.logit_bias = nn.Parameter(torch.tensor(1.5)), nn.Parameter(torch.tensor(-2.0))
        self.double()

    def forward(self, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.image(images), self.text(texts), self.logit_scale.exp(), 1 * self.logit_bias


class Part:
    """One rank's share of the batch."""

    def __init__(self, rank: int, world: int, split: str) -> None:
        generator = torch.Generator().manual_seed(2)
        images, texts = [slice(0, 6), slice(0, 9)]
        if world == 2:
            images, texts = (slice(sum(counts[:rank]), sum(counts[: rank + 1])) for counts in SPLITS[split])

        def rows(count: int, *shape: int) -> Tensor:
            return torch.randn(count, *shape, generator=generator, dtype=torch.float64)

        self.images, self.teacher_images = rows(6, 6)[images], rows(6, 5)[images]
        self.texts, self.teacher_texts = rows(9, 7)[texts], rows(9, 5)[texts]
        self.teacher_states = rows(9, 3, 5)[texts]
        self.index = OWNER[texts] - images.start

    def encoded(self, student: nn.Module) -> tuple[Encoded, Encoded]:
        images, texts, scale, bias = student(self.images, self.texts)
        states = {"text": {4: texts[:, None].expand(-1, 3, -1)}}
        teacher = {"text": {4: self.teacher_states}}
        return Encoded(images, texts, scale, bias, states), Encoded(
            self.teacher_images, self.teacher_texts, 7.0, None, teacher
        )


def losses() -> dict[str, Callable[[Encoded, Encoded, Part], Tensor]]:
    return {
        "info_nce": lambda s, t, part: info_nce(s.images, s.texts, s.logit_scale, part.index),
        "sigmoid": lambda s, t, part: sigmoid(s.images, s.texts, s.logit_scale, s.logit_bias, part.index),
        "similarity": lambda s, t, part: similarity(s.images, s.texts, s.logit_scale, t.images, t.texts, t.logit_scale),
        "features": lambda s, t, part: features(s.images, s.texts, t.images, t.texts),
        "hidden": lambda s, t, part: hidden(s.hidden, t.hidden),
        "distillation": lambda s, t, part: DistillationLoss.paper()(s, t, image_index=part.index)[0],
        "sigmoid and all": lambda s, t, part: DistillationLoss.paper(sigmoid=True)(s, t, image_index=part.index)[0],
    }


def averaged(model: nn.Module, world: int) -> dict[str, Tensor]:
    """The mean of the ranks' gradients, as DDP would have it."""
    found = {}
    for name, parameter in model.named_parameters():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
        if world > 1:
            dist.all_reduce(gradient)
        found[name] = gradient / world
    return found


def chunked(rank: int, world: int) -> dict[str, Tensor]:
    """Through a real DDP, in chunks, at which DDP averages gradients itself."""
    student, part = Student(), Part(rank, world, "even")
    model: Any = nn.parallel.DistributedDataParallel(student) if world > 1 else student
    count = len(part.images)
    texts = part.texts[:count]
    value = chunked_backward(
        lambda rows: model(part.images[rows], texts[rows]),
        [slice(0, 2), slice(2, count)],
        lambda images, texts, scale, bias: sigmoid(images, texts, scale, bias),
        no_sync=model.no_sync if world > 1 else nullcontext,
    )
    gradients = {name: parameter.grad for name, parameter in student.named_parameters() if parameter.grad is not None}
    return {"loss": value, **gradients}


def refused(run: Callable[[], Any]) -> str:
    try:
        run()
    except ValueError as error:
        return str(error)
    return "nothing"


def results(rank: int, world: int, splits: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for split in splits:
        for name, loss in losses().items():
            student, part = Student(), Part(rank, world, split)
            value = loss(*part.encoded(student), part)
            value.backward()
            found[f"{name}, {split}"] = {"loss": value.detach(), **averaged(student, world)}
    return found


def run(rank: int) -> dict[str, Any]:
    """Results of this rank of two."""
    found = results(rank, 2, list(SPLITS))
    found["chunked"] = chunked(rank, 2)
    width, none = torch.ones(2, 3 + rank), torch.ones(0, 3)
    found["widths"] = refused(lambda: info_nce(width, width, 2.0))
    found["empty"] = refused(lambda: info_nce(none, none, 2.0))
    return found
