"""The terms of the objective: this rank's share of each, whose sum over ranks is the loss of the whole batch."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from ._gather import Rows, total, unit, wide

Hidden = Mapping[str, Mapping[int, Tensor]]
"""Hidden states by tower (``image``, ``text``) and by the block's index in the teacher, ``[B, T, width]`` each."""


def info_nce(images: Rows, texts: Rows, owner: Int[Tensor, "n"], scale: Tensor) -> Tensor:
    """L_itc: the symmetric contrastive loss of CLIP (arXiv 2103.00020), in nats; ``owner`` is each own caption's image."""
    # Where an image has several captions, each is contrasted with the captions of *other* images, and the loss is the mean
    # over captions: the loss of :class:`torch_pruning_mope.metrics.ContrastiveLoss`. An image without a caption is contrasted
    # with.
    right = images.start + owner
    text_to_image = F.cross_entropy(_logits(texts.own, images.all, scale), right, reduction="sum")
    similarities = _logits(images.own, texts.all, scale)
    own = owner, texts.places
    mask = torch.zeros_like(similarities, dtype=torch.bool)
    mask[own] = True
    others = similarities.masked_fill(mask, -torch.inf).logsumexp(-1)[owner]
    image_to_text = -F.logsigmoid(similarities[own] - others).sum()
    return (image_to_text + text_to_image) / (2 * len(texts.all))


def sigmoid(images: Rows, texts: Rows, owner: Int[Tensor, "n"], scale: Tensor, bias: Tensor) -> Tensor:
    """L_itc of SigLIP (arXiv 2303.15343): logistic loss of every image with every caption, over the number of captions."""
    similarities = _logits(images.own, texts.all, scale) + bias
    sign = -torch.ones_like(similarities)
    sign[owner, texts.places] = 1
    return -F.logsigmoid(sign * similarities).sum() / len(texts.all)


def similarity(
    images: Rows, texts: Rows, scale: Tensor, teacher_images: Rows, teacher_texts: Rows, teacher_scale: Tensor
) -> Tensor:
    """L_sim of MoPE-CLIP (arXiv 2403.07839): soft cross-entropy from the teacher's similarities to the student's."""
    # The teacher's distribution over captions for each image, and over images for each caption, are the student's targets;
    # the two directions are averaged. Lowest, at the teacher's mean entropy, where the distributions agree. TinyCLIP's affinity
    # mimicking (arXiv 2309.12314) is the same loss. Embedding sizes may differ.
    image_to_text = _soft_cross_entropy(
        _logits(images.own, texts.all, scale), _logits(teacher_images.own, teacher_texts.all, teacher_scale)
    )
    text_to_image = _soft_cross_entropy(
        _logits(texts.own, images.all, scale), _logits(teacher_texts.own, teacher_images.all, teacher_scale)
    )
    return (image_to_text / len(images.all) + text_to_image / len(texts.all)) / 2


def features(images: Rows, texts: Rows, teacher_images: Tensor, teacher_texts: Tensor) -> Tensor:
    """L_feat of MoPE-CLIP: mean squared error of normalised embeddings, averaged over the towers."""
    # The mean is over embedding dimensions too, so that it is at most 4 / J: hence the paper's weight of 1000.
    errors = [
        F.mse_loss(student.own, unit(teacher.detach().to(student.own.device)).to(student.own.dtype), reduction="sum")
        / student.all.numel()
        for student, teacher in ((images, teacher_images), (texts, teacher_texts))
    ]
    return (errors[0] + errors[1]) / 2


def hidden_states(hidden: Hidden, teacher_hidden: Hidden) -> Tensor:
    """L_hidn of MoPE-CLIP: mean squared error of the hidden states that leave the kept blocks."""
    # A block of the student is compared with the teacher's block of the same key, its index *before* any block was removed.
    # Errors are means over batch, tokens and width, sums over blocks, and averaged over the two towers (our reading of the
    # paper's ½; a tower that is not given counts as zero). There is no projection, as in the paper: pruning keeps the residual
    # width.
    if not any(hidden.values()):
        raise ValueError(
            "hidden must hold at least one block; found none. Give the student's blocks, or L_hidn weight 0."
        )
    errors, counts = [], []
    for tower, blocks in hidden.items():
        for index, student in blocks.items():
            teacher = _counterpart(teacher_hidden, tower, index, student)
            errors.append(((wide(student) - wide(teacher.detach().to(student.device))) ** 2).sum())
            counts.append(student.numel())
    first = errors[0].device  # layers may be spread over devices
    whole = total(torch.tensor(counts, device=first)).clamp(min=1)
    return (torch.stack([error.to(first) for error in errors]) / whole).sum() / 2


def _logits(rows: Tensor, columns: Tensor, scale: Tensor) -> Tensor:
    """Scaled similarities ``[rows, columns]``, in the embeddings' own precision also under autocast."""
    with torch.autocast(rows.device.type, enabled=False):
        return (scale.to(rows.dtype) * rows) @ columns.mT


def _soft_cross_entropy(student: Tensor, teacher: Tensor) -> Tensor:
    return F.cross_entropy(student, teacher.softmax(-1).to(student.dtype), reduction="sum")


def _counterpart(teacher_hidden: Hidden, tower: str, index: int, student: Tensor) -> Tensor:
    """The teacher's hidden states for one block of the student."""
    found = teacher_hidden.get(tower, {})
    if index not in found:
        raise ValueError(
            f"teacher_hidden must hold every block of the student; found blocks {sorted(found)} of its {tower} tower, without "
            f"{index}. Key hidden states by the block's index before any was removed."
        )
    teacher = found[index]
    if student.shape != teacher.shape:
        raise ValueError(
            "hidden states must have the same shape as the teacher's; found "
            f"{list(student.shape)} and {list(teacher.shape)} in block {index} of the {tower} tower. "
            "Give both the same batch, at the same resolution and context length; "
            "L_hidn needs the residual width whole."
        )
    return teacher
