"""Training batches, drawn from pairs by seed and step, or taken as they come."""

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
    """One rank's share of a batch; ``rows`` and ``captions`` are its places in the pairs, where it comes from pairs."""

    images: Tensor
    tokens: Tensor
    teacher_images: Tensor
    teacher_tokens: Tensor
    rows: Tensor | None = None
    captions: Tensor | None = None


def drawn(
    pairs: Pairs, teacher_pairs: Pairs | None, begun: int, batch_size: int, seed: int, rank: int, world: int
) -> Iterator[Batch]:
    """Yields this rank's share of each batch after the first ``begun``; they depend on the seed and the step alone."""
    theirs = teacher_pairs or pairs
    per_epoch = pairs.num_images // batch_size
    first, place = divmod(begun, per_epoch)
    for epoch in count(first):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        order = torch.randperm(pairs.num_images, generator=generator)
        ranked = torch.randperm(pairs.num_captions, generator=generator)
        # The last write wins: of an image's captions, the one that comes last in a random order.
        chosen = torch.empty(pairs.num_images, dtype=torch.long)
        chosen[pairs.image_index[ranked]] = ranked
        for start in range(place * batch_size, per_epoch * batch_size, batch_size):
            rows = order[start : start + batch_size][rank::world]
            captions = chosen[rows]
            own = pairs.images[rows], pairs.tokens[captions]
            other = own if teacher_pairs is None else (theirs.images[rows], theirs.tokens[captions])
            yield Batch(*own, *other, rows, captions)
        place = 0


def given(batches: Iterable[tuple[Tensor, ...]], begun: int) -> Iterator[Batch]:
    """Yields the batches after the first ``begun``, from the beginning again at the end."""
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
            raise ValueError("pairs must yield batches (images, tokens) each time they are iterated; found none.")


def check_aligned(pairs: Batches, teacher_pairs: Pairs | None) -> None:
    """Raises ValueError unless the teacher's pairs are the student's images and captions in the same order."""
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
