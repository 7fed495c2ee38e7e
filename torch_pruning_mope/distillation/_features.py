"""L_feat: distance of the student's embeddings from the teacher's."""

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ._checks import check_counterparts
from ._gather import BatchLoss, row_counts, summed, unit


class FeatureLoss(BatchLoss):
    """L_feat of MoPE-CLIP (arXiv 2403.07839): mean squared error of normalised embeddings, averaged over the towers.

    The mean is over embedding dimensions too, so that it is at most 4 / J: hence the paper's weight of 1000.
    """

    def forward(
        self,
        images: Float[Tensor, "I J"],
        texts: Float[Tensor, "N J"],
        teacher_images: Float[Tensor, "I K"],
        teacher_texts: Float[Tensor, "N K"],
    ) -> Float[Tensor, ""]:
        """Returns the loss of the whole batch."""
        check_counterparts(images, texts, teacher_images, teacher_texts)
        check_sizes(images, teacher_images)
        counts = [sum(row_counts(rows, name, self.group)) for name, rows in (("images", images), ("texts", texts))]
        return summed(features(images, texts, teacher_images, teacher_texts, counts), self.group)


def check_sizes(student: Tensor, teacher: Tensor) -> None:
    """Raises ValueError unless both embed into as many dimensions."""
    if student.shape[1] != teacher.shape[1]:
        raise ValueError(
            f"L_feat must have embeddings of the same size; found {student.shape[1]} of the student and {teacher.shape[1]} of "
            "the teacher. Set its weight to 0: L_sim carries over between sizes."
        )


def features(
    images: Tensor, texts: Tensor, teacher_images: Tensor, teacher_texts: Tensor, counts: Sequence[int]
) -> Tensor:
    """This rank's share of L_feat; ``counts`` are the images and captions of all ranks."""
    pairs = ((images, teacher_images), (texts, teacher_texts))
    errors = [
        F.mse_loss(unit(student), unit(teacher.detach().to(student.device, student.dtype)), reduction="sum")
        / (count * student.shape[1])
        for (student, teacher), count in zip(pairs, counts, strict=True)
    ]
    return (errors[0] + errors[1]) / 2
