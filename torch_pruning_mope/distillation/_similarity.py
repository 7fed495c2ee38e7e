"""L_sim: soft cross-entropy from the teacher's similarities."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ._checks import check_counterparts, logits, scalar
from ._gather import BatchLoss, Group, Rows, gathered, summed


class SimilarityLoss(BatchLoss):
    """L_sim of MoPE-CLIP (arXiv 2403.07839): soft cross-entropy from the teacher's similarities to the student's.

    The teacher's distribution over captions for each image, and over images for each caption, are the student's targets;
    the two directions are averaged. Lowest, at the teacher's mean entropy, where the distributions agree. TinyCLIP's affinity
    mimicking (arXiv 2309.12314) is the same loss. Embedding sizes may differ, and no captions need to match.
    """

    def forward(
        self,
        images: Float[Tensor, "I J"],
        texts: Float[Tensor, "N J"],
        logit_scale: float | Float[Tensor, "..."],
        teacher_images: Float[Tensor, "I K"],
        teacher_texts: Float[Tensor, "N K"],
        teacher_logit_scale: float | Float[Tensor, "..."],
    ) -> Float[Tensor, ""]:
        """Returns the loss of the whole batch, in nats."""
        check_counterparts(images, texts, teacher_images, teacher_texts)
        scale = scalar(logit_scale, "logit_scale", images)
        teacher_scale = scalar(teacher_logit_scale, "teacher_logit_scale", images).detach()
        student = gathered(images, "images", self.group), gathered(texts, "texts", self.group)
        teacher = teacher_rows(teacher_images, teacher_texts, images, self.group)
        return summed(similarity(*student, scale, *teacher, teacher_scale), self.group)


def teacher_rows(images: Tensor, texts: Tensor, like: Tensor, group: Group) -> tuple[Rows, Rows]:
    """The teacher's embeddings of all ranks, on the student's device."""
    return (
        gathered(images.detach().to(like.device), "teacher_images", group),
        gathered(texts.detach().to(like.device), "teacher_texts", group),
    )


def similarity(
    images: Rows, texts: Rows, scale: Tensor, teacher_images: Rows, teacher_texts: Rows, teacher_scale: Tensor
) -> Tensor:
    """This rank's share of L_sim: its images' and its captions' terms, each over the number of all."""
    image_to_text = _soft_cross_entropy(
        logits(images.own, texts.all, scale), logits(teacher_images.own, teacher_texts.all, teacher_scale)
    )
    text_to_image = _soft_cross_entropy(
        logits(texts.own, images.all, scale), logits(teacher_texts.own, teacher_images.all, teacher_scale)
    )
    return (image_to_text / len(images.all) + text_to_image / len(texts.all)) / 2


def _soft_cross_entropy(student: Tensor, teacher: Tensor) -> Tensor:
    return F.cross_entropy(student, teacher.softmax(-1).to(student.dtype), reduction="sum")
