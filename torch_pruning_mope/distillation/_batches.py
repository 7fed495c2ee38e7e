"""Training batches: drawn from pairs by seed and step alone, or as they are given."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor

from ..data import Pairs

Batches = Pairs | Iterable[tuple[Tensor, ...]]
"""Pairs, or batches ``(images, tokens)``, or ``(images, tokens, teacher's images, teacher's tokens)``."""


@dataclass(frozen=True)
class Batch:
    """One rank's share of a batch.

    Attributes:
        images: The student's images.
        tokens: A caption of each.
        teacher_images: The same images as the teacher takes them.
        teacher_tokens: The same captions, likewise.
        rows: Which images of the pairs they are, where that is known.
        captions: Which captions.
    """

    images: Tensor
    tokens: Tensor
    teacher_images: Tensor
    teacher_tokens: Tensor
    rows: Tensor | None = None
    captions: Tensor | None = None


def drawn(
    pairs: Pairs, teacher_pairs: Pairs | None, begun: int, batch_size: int, seed: int, rank: int, world: int
) -> Iterator[Batch]:
    """This rank's share of batch after batch; a matter of the seed and the step alone.

    Args:
        pairs: The pairs.
        teacher_pairs: The same as the teacher takes them; None if it takes them as the student does.
        begun: Steps done.
        batch_size: Pairs of a batch, over all ranks.
        seed: Of the order.
        rank: This rank.
        world: How many there are.

    Yields:
        Batches, without end.
    """
    theirs = teacher_pairs or pairs
    per_epoch = pairs.num_images // batch_size
    for step in count(begun):
        epoch, place = divmod(step, per_epoch)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        order = torch.randperm(pairs.num_images, generator=generator)
        ranked = torch.randperm(pairs.num_captions, generator=generator)
        # The last write wins: of an image's captions, the one that comes last in a random order.
        chosen = torch.empty(pairs.num_images, dtype=torch.long)
        chosen[pairs.image_index[ranked]] = ranked
        rows = order[place * batch_size : (place + 1) * batch_size][rank::world]
        captions = chosen[rows]
        own = pairs.images[rows], pairs.tokens[captions]
        other = own if teacher_pairs is None else (theirs.images[rows], theirs.tokens[captions])
        yield Batch(*own, *other, rows, captions)


def given(batches: Iterable[tuple[Tensor, ...]], begun: int) -> Iterator[Batch]:
    """Batch after batch as given, from the beginning again at the end.

    Args:
        batches: The batches.
        begun: Steps done, whose batches are skipped.

    Yields:
        Batches, without end.

    Raises:
        ValueError: If there are none, or one is not of two or four tensors.
    """
    seen = 0
    while True:
        before = seen
        for batch in batches:
            seen += 1
            if seen <= begun:
                continue
            if len(batch) not in {2, 4}:
                raise ValueError(
                    "pairs must yield batches (images, tokens), or (images, tokens, teacher's images, teacher's tokens); found "
                    f"one of {len(batch)}."
                )
            yield Batch(*batch[:2], *(batch[2:] or batch))
        if seen == before:
            raise ValueError("pairs must yield batches (images, tokens) as often as they are gone through; found none.")


def check_aligned(pairs: Batches, teacher_pairs: Pairs | None) -> None:
    """Raises unless the teacher's pairs are the same as the student's.

    Args:
        pairs: The student's.
        teacher_pairs: The teacher's, if they differ.

    Raises:
        ValueError: If they are others, or the student's come as batches.
    """
    if teacher_pairs is None:
        return
    if not isinstance(pairs, Pairs):
        raise ValueError(
            "teacher_pairs must go with Pairs; found batches. Let them be (images, tokens, teacher's images, teacher's tokens)."
        )
    same = torch.equal(pairs.image_index.cpu(), teacher_pairs.image_index.cpu())
    if not same or pairs.num_images != teacher_pairs.num_images:
        raise ValueError(
            "teacher_pairs must be the same images and captions in the same order as pairs; found "
            f"{teacher_pairs.num_images} images and {teacher_pairs.num_captions} captions for {pairs.num_images} and "
            f"{pairs.num_captions}, or captions of other images. Prepare both from one list."
        )
