"""What a teacher makes of a batch: run now, or kept."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from .._state import evaluation_mode
from ..data import Pairs
from ..encoder import EncoderCore
from ._batches import Batch, Batches
from ._cache import HALF, TeacherCache, TeacherPrecision
from ._distillation import DistillationLoss, Encoded
from ._student import Student
from ._teacher import TeacherEmbeddings

Teacher = EncoderCore | TeacherEmbeddings | TeacherCache


def check_teacher(teacher: Teacher | None, pairs: Batches, teacher_pairs: Pairs | None, loss: DistillationLoss) -> None:
    """Raises unless a teacher has what a loss asks of it.

    Args:
        teacher: The teacher, or what is kept of one.
        pairs: What the student is trained on.
        teacher_pairs: The same as the teacher takes them.
        loss: The objective.

    Raises:
        ValueError: Otherwise.
    """
    needs_hidden = "hidden" in loss.weights
    if needs_hidden and not (
        isinstance(teacher, EncoderCore) or (isinstance(teacher, TeacherCache) and teacher.hidden)
    ):
        raise ValueError(
            "teacher must be a DualEncoder, or a TeacherCache with hidden=True, for the term 'hidden', whose states are not "
            f"kept as embeddings are; found {type(teacher).__name__}. Pass such a teacher, or a DistillationLoss(hidden=0.0)."
        )
    if not isinstance(teacher, TeacherEmbeddings | TeacherCache):
        return
    if not isinstance(pairs, Pairs) or teacher_pairs is not None:
        raise ValueError(
            "pairs must be Pairs, and teacher_pairs left out, for a teacher's embeddings, which are of fixed pairs; found "
            f"{'batches' if teacher_pairs is None else 'teacher_pairs'}. Compute the embeddings from the teacher's pairs."
        )
    if (teacher.num_images, teacher.num_captions) != (pairs.num_images, pairs.num_captions):
        raise ValueError(
            f"teacher must hold embeddings of pairs; found {teacher.num_images} images and {teacher.num_captions} captions for "
            f"{pairs.num_images} and {pairs.num_captions}. Compute them again."
        )


def taught(
    teacher: Teacher | None, batch: Batch, accelerator: Any, precision: TeacherPrecision | None, *, hidden: bool
) -> Encoded | None:
    """What the teacher makes of a batch.

    Args:
        teacher: The teacher, or what is kept of one; None for none.
        batch: The batch.
        accelerator: Accelerate's.
        precision: What the teacher computes in; None for as the student does.
        hidden: Whether hidden states are asked for.

    Returns:
        Embeddings without a graph.
    """
    if teacher is None:
        return None
    device = accelerator.device
    if not isinstance(teacher, EncoderCore):
        return (
            None
            if batch.rows is None or batch.captions is None
            else teacher.encoded(batch.rows, batch.captions, device)
        )
    dtype = None if precision is None else HALF[precision]
    own: AbstractContextManager[Any] = nullcontext() if dtype is None else torch.autocast(device.type, dtype)
    with torch.no_grad(), evaluation_mode(teacher.model), accelerator.autocast(), own:
        found: Encoded = Student(teacher, hidden=hidden)(
            batch.teacher_images.to(device), batch.teacher_tokens.to(device)
        )
    return found
