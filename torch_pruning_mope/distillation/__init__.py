"""Distillation of a pruned dual encoder, the student, from the whole one, the teacher.

All losses are modules without parameters: temperatures and biases are arguments. Axes: ``I`` images, ``N`` captions, ``J`` the
student's joint embedding, ``K`` the teacher's, of this rank. In a process group, every rank passes its own part of the batch,
which may differ in size, gets the loss of the whole batch, and backpropagates it; the mean of the ranks' gradients, which
DDP takes, is that of one process with the whole batch. All captions of an image are on the image's rank.

Losses are float32 at least, also under autocast. They do not look for NaN, which would wait for the device.
"""

from ._cache import TeacherCache
from ._chunks import chunked_backward
from ._contrast import InfoNCELoss, SigmoidLoss
from ._features import FeatureLoss
from ._hidden import Hidden, HiddenLoss
from ._loop import TrainingStep
from ._loss import DistillationLoss, Encoded
from ._similarity import SimilarityLoss
from ._train import check_training, distill

distil = distill
"""Another spelling of :func:`distill`."""

__all__ = [
    "DistillationLoss",
    "Encoded",
    "FeatureLoss",
    "Hidden",
    "HiddenLoss",
    "InfoNCELoss",
    "SigmoidLoss",
    "SimilarityLoss",
    "TeacherCache",
    "TrainingStep",
    "check_training",
    "chunked_backward",
    "distil",
    "distill",
]
