"""Queries that a pruned model answers differently."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..data import Pairs
from ..dual_encoder import DualEncoder
from ..metrics import normalised
from ..metrics._metric import tiles
from ..scoring import PlainEngine
from ._examples import DIRECTIONS, OUTCOMES, Candidate, ChangedExamples, Direction, Example, Outcome
from ._pictures import picture_levels, thumbnail

_THUMBNAIL = 112
"""Pixels on a side of the pictures."""


class Answers(NamedTuple):
    """One model's answers to all queries of a direction: right only where ``margin`` is above 0."""

    best: Int[Tensor, "Q"]
    right: Int[Tensor, "Q"]
    margin: Float[Tensor, "Q"]


def changed_examples(
    before: DualEncoder,
    after: DualEncoder,
    pairs: Pairs,
    *,
    count: int = 16,
    captions: Sequence[str] | None = None,
    tokenizer: object | None = None,
) -> ChangedExamples:
    """Finds queries to which two models give different answers of which one at most is right, and counts them."""
    # Picks, of each outcome (worse, better, both wrong) and direction in turn, the query whose margin changed most. The
    # same models and pairs give the same examples.
    if count < 1:
        raise ValueError(f"count must be at least 1; found {count}.")
    if captions is not None and len(captions) != pairs.num_captions:
        raise ValueError(f"captions must be one per caption, {pairs.num_captions}; found {len(captions)}.")
    levels = picture_levels(pairs.images)

    def image(index: int) -> Candidate:
        return Candidate(index, picture=levels and thumbnail(pairs.images[index], levels, _THUMBNAIL))

    def text(index: int) -> Candidate:
        return Candidate(
            index, caption=_decoded(pairs.tokens[index], tokenizer) if captions is None else captions[index]
        )

    embeddings = [_embeddings(encoder, pairs) for encoder in (before, after)]
    owners = pairs.image_index.cpu()
    changes = {
        way: (_answers(*embeddings[0], owners, way), _answers(*embeddings[1], owners, way)) for way in DIRECTIONS
    }
    found = {(way, outcome): _ranked(*changes[way], outcome) for outcome in OUTCOMES for way in DIRECTIONS}
    examples = [
        _example(way, outcome, query, changes[way], image, text) for way, outcome, query in _in_turn(found, count)
    ]
    return ChangedExamples(
        tuple(sorted(examples, key=lambda example: OUTCOMES.index(example.outcome))),
        {way: {outcome: len(found[way, outcome]) for outcome in OUTCOMES} for way in DIRECTIONS},
        {"i2t": pairs.num_images, "t2i": pairs.num_captions},
    )


def _decoded(tokens: Int[Tensor, "T"], tokenizer: Any) -> str:
    """A caption's words, by open_clip's tokenizers or transformers', which open_clip wraps; else its ids."""
    ids = tokens.tolist()
    own = getattr(tokenizer, "tokenizer", tokenizer)
    if not hasattr(own, "decode"):
        return " ".join(map(str, ids))
    if hasattr(own, "all_special_ids") and not hasattr(own, "eot_token_id"):
        return str(own.decode(ids, skip_special_tokens=True)).strip()
    start, end = (getattr(own, f"{name}_token_id", None) for name in ("sot", "eot"))
    words = ids[: ids.index(end)] if end in ids else ids
    return str(own.decode([token for token in words if token != start])).strip()


def _embeddings(encoder: DualEncoder, pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Normalised embeddings of images and captions, on the CPU, whose maxima of ties do not vary."""
    engine = PlainEngine(encoder, batch_size=64)
    images, texts = engine.embeddings("image", pairs.images), engine.embeddings("text", pairs.tokens)
    return normalised(images, "image").cpu(), normalised(texts, "text").cpu()


def _answers(
    images: Float[Tensor, "I J"], texts: Float[Tensor, "N J"], owners: Int[Tensor, "N"], direction: Direction
) -> Answers:
    """A model's answers; right and wrong as in :class:`Recall`: ties are wrong."""
    queries, gallery = (images, texts) if direction == "i2t" else (texts, images)
    ids = torch.arange(len(images))
    own, theirs = (ids, owners) if direction == "i2t" else (owners, ids)
    best, right, margin = [], [], []
    for rows in tiles(len(queries), len(gallery), 2):
        similarity = queries[rows] @ gallery.T
        is_right = own[rows, None] == theirs[None]
        good, good_at = similarity.masked_fill(~is_right, -torch.inf).max(1)
        bad, bad_at = similarity.masked_fill(is_right, -torch.inf).max(1)
        best.append(torch.where(good > bad, good_at, bad_at))
        right.append(good_at)
        margin.append(good - bad)
    return Answers(torch.cat(best), torch.cat(right), torch.cat(margin))


def _ranked(before: Answers, after: Answers, outcome: Outcome) -> list[int]:
    """Queries of one outcome, those whose margin changed most first."""
    was, now = before.margin > 0, after.margin > 0
    chosen = {"worse": was & ~now, "better": ~was & now, "both wrong": ~was & ~now & (before.best != after.best)}[
        outcome
    ]
    queries = chosen.nonzero().flatten()
    change = (after.margin - before.margin)[queries].abs()
    return list(queries[change.argsort(descending=True, stable=True)].tolist())


def _in_turn(found: dict[tuple[Direction, Outcome], list[int]], count: int) -> list[tuple[Direction, Outcome, int]]:
    """One query of each list in turn, from its front, until there are enough or none are left."""
    longest = max(map(len, found.values()))
    turns = [
        (way, outcome, queries[turn])
        for turn in range(longest)
        for (way, outcome), queries in found.items()
        if turn < len(queries)
    ]
    return turns[:count]


def _example(
    direction: Direction,
    outcome: Outcome,
    query: int,
    answers: tuple[Answers, Answers],
    image: Callable[[int], Candidate],
    text: Callable[[int], Candidate],
) -> Example:
    ask, answer = (image, text) if direction == "i2t" else (text, image)
    before, after = answers
    return Example(
        direction,
        outcome,
        ask(query),
        answer(int(after.right[query])),
        answer(int(before.best[query])),
        answer(int(after.best[query])),
        float(before.margin[query]),
        float(after.margin[query]),
    )
