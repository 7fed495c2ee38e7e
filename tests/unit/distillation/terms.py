"""Each term of the objective alone."""

from typing import Any

import torch
from torch import Tensor

from torch_pruning_mope.distillation import DistillationLoss, Encoded

OFF = {"contrastive": 0.0, "similarity": 0.0, "features": 0.0, "hidden": 0.0}
ONE = torch.ones(1, 1)


def alone(term: str, student: Encoded, teacher: Encoded | None = None, *, sigmoid: bool = False, **more: Any) -> Tensor:
    return DistillationLoss(**OFF | {term: 1.0}, sigmoid=sigmoid)(student, teacher, **more)[0]


def info_nce(images: Tensor, texts: Tensor, scale: Any, index: Tensor | None = None) -> Tensor:
    return alone("contrastive", Encoded(images, texts, scale), image_index=index)


def sigmoid(images: Tensor, texts: Tensor, scale: Any, bias: Any, index: Tensor | None = None) -> Tensor:
    return alone("contrastive", Encoded(images, texts, scale, bias), sigmoid=True, image_index=index)


def similarity(*student_and_teacher: Any) -> Tensor:
    """Images, texts and scale of the student, then of the teacher."""
    return alone("similarity", Encoded(*student_and_teacher[:3]), Encoded(*student_and_teacher[3:]))


def features(images: Tensor, texts: Tensor, teacher_images: Tensor, teacher_texts: Tensor) -> Tensor:
    return alone("features", Encoded(images, texts, 1.0), Encoded(teacher_images, teacher_texts, 1.0))


def hidden(student: Any, teacher: Any) -> Tensor:
    return alone("hidden", *(Encoded(ONE, ONE, 1.0, None, states) for states in (student, teacher)))
