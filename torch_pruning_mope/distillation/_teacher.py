"""Outputs of a teacher on a batch: computed, or read from a cache."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from .._state import evaluation_mode
from ..data import Pairs
from ..encoder import EncoderCore
from ._batches import Batch, Batches
from ._cache import HALF, TeacherCache, TeacherPrecision
from ._loss import DistillationLoss, Encoded
from ._student import Student

Teacher = EncoderCore | TeacherCache


def check_teacher(teacher: Teacher | None, pairs: Batches, teacher_pairs: Pairs | None, loss: DistillationLoss) -> None:
    """Raises ValueError unless a teacher has what a loss asks of it."""
    if "hidden" in loss.weights and not (
        isinstance(teacher, EncoderCore) or (isinstance(teacher, TeacherCache) and teacher.hidden)
    ):
        raise ValueError(
            "teacher must be a DualEncoder, or a TeacherCache with hidden=True, for the term 'hidden'; found "
            f"{type(teacher).__name__}. Pass such a teacher, or a DistillationLoss(hidden=0.0)."
        )
    if not isinstance(teacher, TeacherCache):
        return
    if not isinstance(pairs, Pairs) or teacher_pairs is not None:
        raise ValueError(
            "pairs must be Pairs, and teacher_pairs left out, for a TeacherCache, which is of fixed pairs; found "
            f"{'batches' if teacher_pairs is None else 'teacher_pairs'}. Make the cache from the teacher's pairs."
        )
    if (teacher.num_images, teacher.num_captions) != (pairs.num_images, pairs.num_captions):
        raise ValueError(
            f"teacher must be a cache of pairs; found one of {teacher.num_images} images and {teacher.num_captions} captions "
            f"for {pairs.num_images} and {pairs.num_captions}. Make it again."
        )


def run_teacher(
    teacher: Teacher | None, batch: Batch, accelerator: Any, precision: TeacherPrecision | None, *, hidden: bool
) -> Encoded | None:
    """Outputs of the teacher, if there is one, without a graph; in the student's precision unless another is given."""
    if teacher is None:
        return None
    device = accelerator.device
    if isinstance(teacher, TeacherCache):
        if batch.rows is None or batch.captions is None:
            return None
        return teacher.encoded(batch.rows, batch.captions, device)
    dtype = None if precision is None else HALF[precision]
    own: AbstractContextManager[Any] = nullcontext() if dtype is None else torch.autocast(device.type, dtype)
    with torch.no_grad(), evaluation_mode(teacher.model), accelerator.autocast(), own:
        found: Encoded = Student(teacher, hidden=hidden)(
            batch.teacher_images.to(device), batch.teacher_tokens.to(device)
        )
    return found
