"""Distillation of a pruned dual encoder, the student, from the whole one, the teacher.

Losses are modules without parameters. Axes: ``I`` images, ``N`` captions, ``J`` the student's joint embedding, ``K`` the
teacher's. Their arguments are this rank's part of the batch:

- ``images`` ``[I, J]``, ``texts`` ``[N, J]``: the student's embeddings, normalised or not; ``teacher_images`` and
  ``teacher_texts``: the teacher's, which get no gradient.
- ``logit_scale``: multiplier of cosine similarities, CLIP's ``logit_scale.exp()``; ``logit_bias``: added to them (SigLIP).
- ``image_index`` ``[N]``: position among this rank's images of each caption's image; by default caption j has image j.

In a process group, parts may differ in size, all captions of an image are on the image's rank, and every rank gets the loss
of the whole batch and backpropagates it; the mean of the ranks' gradients, which DDP takes, is that of one process with the
whole batch. Losses are float32 at least, also under autocast, and do not look for NaN, which would wait for the device.
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
