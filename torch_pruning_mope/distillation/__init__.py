"""Distillation of a pruned dual encoder, the student, from the whole one, the teacher.

Axes: ``I`` images, ``N`` captions, ``J`` the student's joint embedding, ``K`` the teacher's. In a process group, parts of a
batch may differ in size, all captions of an image are on the image's rank, and every rank gets the loss of the whole batch and
backpropagates it; the mean of the ranks' gradients, which DDP takes, is that of one process with the whole batch. Losses are
float32 at least, also under autocast, and do not look for NaN, which would wait for the device.
"""

from ._cache import TeacherCache
from ._loop import TrainingStep
from ._loss import DistillationLoss, Encoded
from ._train import check_training, distill

distil = distill
"""Another spelling of :func:`distill`."""

__all__ = [
    "DistillationLoss",
    "Encoded",
    "TeacherCache",
    "TrainingStep",
    "check_training",
    "distil",
    "distill",
]
