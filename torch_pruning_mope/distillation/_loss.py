"""The distillation objective: all terms together."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ._gather import gathered, summed
from ._terms import Hidden, features, hidden_states, info_nce, sigmoid, similarity


def check_embeddings(images: Tensor, texts: Tensor, whose: str = "") -> None:
    """Raises ValueError unless both are rows of one embedding space; ``whose`` is a prefix of their names."""
    for name, rows in ((f"{whose}images", images), (f"{whose}texts", texts)):
        if rows.ndim != 2 or not rows.is_floating_point():
            raise ValueError(
                f"{name} must be embeddings, floats [rows, embedding]; found {rows.dtype} {list(rows.shape)}. "
                "Pass what the tower returns, one row per image or caption."
            )
    if images.shape[1] != texts.shape[1]:
        raise ValueError(
            f"{whose}images and {whose}texts must be embeddings of the same size; found {images.shape[1]} and "
            f"{texts.shape[1]}. Pass both towers' outputs in the joint space, after their projections."
        )


def owners(image_index: Tensor | None, images: Tensor, texts: Tensor) -> Int[Tensor, "N"]:
    """Position of each caption's image among this rank's, on the embeddings' device; ValueError if it does not fit."""
    if image_index is None:
        if len(images) != len(texts):
            raise ValueError(
                f"image_index is required when images ({len(images)}) and captions ({len(texts)}) differ in number: give "
                "the image that each caption describes."
            )
        return torch.arange(len(texts), device=texts.device)
    if image_index.shape != texts.shape[:1] or image_index.is_floating_point() or image_index.dtype == torch.bool:
        raise ValueError(
            f"image_index must hold one integer per caption; found {image_index.dtype} {list(image_index.shape)} for "
            f"{len(texts)} captions. Give the image of each caption."
        )
    low, high = (int(image_index.min()), int(image_index.max())) if len(texts) else (0, -1)
    if low < 0 or high >= len(images):
        raise ValueError(
            f"image_index must lie in 0..{len(images) - 1}; found {low}..{high}. Count this rank's own images from zero: "
            "all captions of an image are on the image's rank."
        )
    return image_index.to(texts.device, torch.long)


def scalar(value: float | Tensor, name: str, like: Tensor, *, positive: bool = True) -> Tensor:
    """A temperature or bias as a tensor without dimensions; values of tensors are not checked, as that waits for the device."""
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(
                f"{name} must be one number; found a tensor of shape {list(value.shape)}. Pass the model's own, one for all."
            )
        return value.to(like.device).reshape(())
    if not math.isfinite(value) or (positive and value <= 0):
        kind = "a positive number" if positive else "a finite number"
        raise ValueError(f"{name} must be {kind}; found {value}. CLIP's is logit_scale.exp(), 1 to 100.")
    # In float32 at least: 14.29 is 14.3125 in bfloat16.
    return torch.tensor(float(value), device=like.device, dtype=torch.promote_types(like.dtype, torch.float32))


@dataclass(frozen=True, eq=False)
class Encoded:
    """Outputs of a dual encoder, student or teacher, on this rank's batch.

    Attributes:
        images: Image embeddings, normalised or not.
        texts: Text embeddings, normalised or not.
        logit_scale: Multiplier of similarities: CLIP's learnt ``logit_scale.exp()``.
        logit_bias: Added to the scaled similarities; SigLIP's loss needs the student's.
        hidden: Hidden states by tower and by the block's index in the teacher, for L_hidn.
    """

    images: Float[Tensor, "I J"]
    texts: Float[Tensor, "N J"]
    logit_scale: float | Float[Tensor, "..."]
    logit_bias: float | Float[Tensor, "..."] | None = None
    hidden: Hidden | None = None


class DistillationLoss(nn.Module):
    """Weighted sum L_itc + α·L_sim + β·L_feat + γ·L_hidn of MoPE-CLIP (arXiv 2403.07839).

    The default suits a student that was reconstructed, and so is good when training begins: embeddings weigh five times as much
    as in the paper, and hidden states, which did harm at every weight that we tried, nothing. :meth:`paper` is the published
    objective. With ``features=0`` it is TinyCLIP's. A term of weight 0 is not computed and needs no input; with
    ``contrastive`` alone no teacher is needed: the loss of CLIP, or of SigLIP. Embeddings are gathered once for all terms.

    Args:
        contrastive: Weight of L_itc, CLIP's contrastive loss (arXiv 2103.00020), in nats, as the mean over captions.
        similarity: Weight α of L_sim: soft cross-entropy from the teacher's similarities to the student's.
        features: Weight β of L_feat: mean squared error of normalised embeddings, over dimensions and towers.
        hidden: Weight γ of L_hidn: mean squared error of hidden states, summed over the student's blocks, over towers.
        sigmoid: L_itc is SigLIP's (arXiv 2303.15343).

    Raises:
        ValueError: If a weight is negative or not finite, or all are 0.
    """

    def __init__(
        self,
        *,
        contrastive: float = 1.0,
        similarity: float = 1.0,
        features: float = 5000.0,
        hidden: float = 0.0,
        sigmoid: bool = False,
    ) -> None:
        super().__init__()
        weights = {"contrastive": contrastive, "similarity": similarity, "features": features, "hidden": hidden}
        for name, weight in weights.items():
            if not math.isfinite(weight) or weight < 0:
                raise ValueError(
                    f"{name} must be a weight of at least 0; found {weight}. A term of weight 0 is skipped."
                )
        if not any(weights.values()):
            raise ValueError(f"weights must not all be 0; found {weights}. Give one term a weight, contrastive=1 say.")
        self.weights = {name: float(weight) for name, weight in weights.items() if weight}
        self.sigmoid = sigmoid

    @classmethod
    def paper(cls, *, sigmoid: bool = False) -> "DistillationLoss":
        """The published objective, with hidden states: (α, β, γ) = (1, 1000, 1)."""
        return cls(features=1000.0, hidden=1.0, sigmoid=sigmoid)

    def forward(
        self,
        student: Encoded,
        teacher: Encoded | None = None,
        *,
        image_index: Int[Tensor, "N"] | None = None,
    ) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
        """The loss of the whole batch, and its terms, on every rank.

        Args:
            student: Outputs on this rank's batch, with gradients.
            teacher: Outputs on the same batch.
            image_index: Position, among this rank's images, of each caption's image; by default caption j has image j.

        Returns:
            The weighted sum, whose gradients are to be averaged over ranks, as DDP does; and each term by the name of its
            weight, not weighted and without gradients.
        """
        shares = self._shares(student, teacher, image_index)
        terms = summed(torch.stack(list(shares.values())))
        total = (terms * terms.new_tensor(list(self.weights.values()))).sum()
        return total, dict(zip(shares, terms.detach().unbind(), strict=True))

    def _shares(self, student: Encoded, teacher: Encoded | None, image_index: Tensor | None) -> dict[str, Tensor]:
        """This rank's share of each term, in the order of the weights; all checks come first."""
        check_embeddings(student.images, student.texts)
        scale = scalar(student.logit_scale, "logit_scale", student.images)
        shares = {}
        if "contrastive" in self.weights:
            owner, bias = owners(image_index, student.images, student.texts), self._bias(student)
        if self.weights.keys() - {"contrastive"}:
            teacher = self._checked(student, teacher)
        if self.weights.keys() - {"hidden"}:
            images, texts = (gathered(getattr(student, name), name) for name in ("images", "texts"))
        if "contrastive" in self.weights:
            shares["contrastive"] = (
                info_nce(images, texts, owner, scale) if bias is None else sigmoid(images, texts, owner, scale, bias)
            )
        if teacher is None:
            return shares
        if "similarity" in self.weights:
            others = [each.detach().to(scale.device) for each in (teacher.images, teacher.texts)]
            names = ("teacher_images", "teacher_texts")
            rows = [gathered(each, name) for each, name in zip(others, names, strict=True)]
            theirs = scalar(teacher.logit_scale, "teacher_logit_scale", student.images).detach()
            shares["similarity"] = similarity(images, texts, scale, rows[0], rows[1], theirs)
        if "features" in self.weights:
            shares["features"] = features(images, texts, teacher.images, teacher.texts)
        if "hidden" in self.weights and student.hidden is not None and teacher.hidden is not None:
            shares["hidden"] = hidden_states(student.hidden, teacher.hidden)
        return shares

    def _bias(self, student: Encoded) -> Tensor | None:
        """The bias of SigLIP's loss; None for CLIP's."""
        if not self.sigmoid:
            return None
        if student.logit_bias is None:
            raise ValueError(
                "logit_bias of the student must be given for the sigmoid loss; found None. Pass the model's, or sigmoid=False."
            )
        return scalar(student.logit_bias, "logit_bias", student.images, positive=False)

    def _checked(self, student: Encoded, teacher: Encoded | None) -> Encoded:
        """Returns the teacher's outputs if they are those that the weights need."""
        if teacher is None:
            raise ValueError(
                f"teacher must be given for terms {sorted(self.weights.keys() - {'contrastive'})}; found None. Pass its "
                "outputs on the batch, or set their weights to 0."
            )
        check_embeddings(teacher.images, teacher.texts, "teacher_")
        for name in ("images", "texts"):
            own, its = len(getattr(student, name)), len(getattr(teacher, name))
            if own != its:
                raise ValueError(
                    f"teacher_{name} must have as many rows as {name}; found {its} and {own}. Give teacher and student the "
                    "same batch, in the same order."
                )
        sizes = student.images.shape[1], teacher.images.shape[1]
        if "features" in self.weights and sizes[0] != sizes[1]:
            raise ValueError(
                f"L_feat must have embeddings of the same size; found {sizes[0]} of the student and {sizes[1]} of the teacher. "
                "Set its weight to 0: L_sim carries over between sizes."
            )
        without = [name for name, side in (("student", student), ("teacher", teacher)) if side.hidden is None]
        if "hidden" in self.weights and without:
            raise ValueError(
                f"hidden must be given for student and teacher; found None for the {' and the '.join(without)}. Pass the "
                "hidden states, or hidden=0."
            )
        return teacher
