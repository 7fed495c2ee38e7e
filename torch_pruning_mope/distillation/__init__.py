"""Losses that train a pruned dual encoder, the student, to do what the whole one, the teacher, does.

All are modules without parameters: temperatures and biases are arguments. Axes: ``I`` images, ``N`` captions, ``J`` the
student's joint embedding, ``K`` the teacher's, of this rank. In a process group, every rank passes its own part of the batch,
which may differ in size, gets the loss of the whole batch, and backpropagates it; the mean of the ranks' gradients, which
DDP takes, is that of one process with the whole batch. All captions of an image are on the image's rank.

Losses are float32 at least, also under autocast. They do not look for NaN, which would wait for the device.
"""

from ._cache import TeacherCache
from ._chunks import chunked_backward
from ._contrast import InfoNCELoss, SigmoidLoss
from ._distillation import DistillationLoss, Encoded
from ._features import FeatureLoss
from ._hidden import Hidden, HiddenLoss
from ._loop import TrainingStep
from ._similarity import SimilarityLoss
from ._teacher import TeacherEmbeddings
from ._train import check_training, distil

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
    "TeacherEmbeddings",
    "TrainingStep",
    "check_training",
    "chunked_backward",
    "distil",
]
