"""L_hidn: distance of hidden states from the teacher's."""

from collections.abc import Mapping

import torch
from jaxtyping import Int
from torch import Tensor

from ._gather import BatchLoss, Group, summed, total, wide

Hidden = Mapping[str, Mapping[int, Tensor]]
"""Hidden states by tower (``image``, ``text``) and by the block's index in the teacher, ``[B, T, width]`` each."""


class HiddenLoss(BatchLoss):
    """L_hidn of MoPE-CLIP (arXiv 2403.07839): mean squared error of the hidden states that leave the kept blocks.

    A block of the student is compared with the teacher's block of the same key, its index *before* any block was removed.
    Errors are means over batch, tokens and width, sums over blocks, and averaged over the two towers (our reading of the
    paper's ½; a tower that is not given counts as zero). There is no projection, as in the paper: pruning keeps the residual
    width.
    """

    def forward(
        self, hidden: Hidden, teacher_hidden: Hidden, lengths: Mapping[str, Int[Tensor, "_"]] | None = None
    ) -> Tensor:
        """Returns the loss of the whole batch."""
        return summed(hidden_states(hidden, teacher_hidden, lengths, self.group), self.group)


def hidden_states(hidden: Hidden, teacher_hidden: Hidden, lengths: Mapping[str, Tensor] | None, group: Group) -> Tensor:
    """This rank's share of L_hidn."""
    if not any(hidden.values()):
        raise ValueError(
            "hidden must hold at least one block; found none. Give the student's blocks, or L_hidn weight 0."
        )
    errors, counts = [], []
    for tower, blocks in hidden.items():
        for index, student in blocks.items():
            teacher = _counterpart(teacher_hidden, tower, index, student)
            error = (wide(student) - wide(teacher.detach().to(student.device))) ** 2
            count = torch.tensor(student.numel(), device=student.device)
            if lengths is not None and tower in lengths:
                mask = _mask(lengths[tower], student, tower)
                error, count = error.masked_fill(~mask, 0), mask.sum() * student.shape[-1]
            errors.append(error.sum())
            counts.append(count)
    first = errors[0].device  # layers may be spread over devices
    whole = total(torch.stack([count.to(first) for count in counts]), group).clamp(min=1)
    return (torch.stack([error.to(first) for error in errors]) / whole).sum() / 2


def _counterpart(teacher_hidden: Hidden, tower: str, index: int, student: Tensor) -> Tensor:
    """The teacher's hidden states for one block of the student."""
    found = teacher_hidden.get(tower, {})
    if index not in found:
        raise ValueError(
            f"teacher_hidden must hold every block of the student; found blocks {sorted(found)} of its {tower} tower, without "
            f"{index}. Key hidden states by the block's index before any was removed."
        )
    teacher = found[index]
    if student.shape == teacher.shape:
        return teacher
    if student.shape[-1] != teacher.shape[-1]:
        raise ValueError(
            f"hidden states must have the same width as the teacher's; found {student.shape[-1]} and {teacher.shape[-1]} in "
            f"block {index} of the {tower} tower. L_hidn needs the residual width whole: set its weight to 0 otherwise."
        )
    raise ValueError(
        f"hidden states must have the same shape as the teacher's; found {list(student.shape)} and {list(teacher.shape)} in "
        f"block {index} of the {tower} tower. Give both the same batch, at the same resolution and context length."
    )


def _mask(lengths: Tensor, student: Tensor, tower: str) -> Tensor:
    """True for the tokens that count."""
    if student.ndim != 3 or lengths.shape != student.shape[:1]:
        raise ValueError(
            f"lengths must hold one number per row of hidden states [batch, tokens, width]; found {list(lengths.shape)} for "
            f"{list(student.shape)} in the {tower} tower. Give hidden states batch first."
        )
    tokens = torch.arange(student.shape[1], device=student.device)
    return (tokens < lengths.to(student.device)[:, None])[..., None]
