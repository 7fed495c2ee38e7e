"""Queries that a pruned model answers differently, as ``examples.json`` of a run holds them."""

import base64
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Float, Int, Shaped
from PIL import Image
from torch import Tensor

from .._io import read_json, typed, write_whole
from ..data import Pairs
from ..dual_encoder import DualEncoder
from ..metrics import normalised
from ..metrics._metric import tiles
from ..scoring import PlainEngine

Direction = Literal["i2t", "t2i"]
Outcome = Literal["worse", "better", "both wrong"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)
_FORMAT = 1
_THUMBNAIL = 112
"""Pixels on a side of the pictures."""


@dataclass(frozen=True)
class Candidate:
    """An image or a caption: a query, or an answer.

    Attributes:
        index: Its position among the images or captions of the pairs.
        caption: The words, of a caption.
        picture: A PNG file's bytes in base64, of an image; None if it cannot be shown.
    """

    index: int
    caption: str | None = None
    picture: str | None = None


@dataclass(frozen=True)
class Example:
    """A query to which two models give different answers, of which one at most is right.

    Attributes:
        direction: ``i2t``, the caption of an image; or ``t2i``, the image of a caption.
        outcome: ``worse`` (only the first model was right), ``better`` (only the second), ``both wrong``.
        query: The query.
        right: The right answer; of several captions, the one most similar to the second model.
        before: The first model's answer.
        after: The second model's answer.
        margin_before: Cosine similarity of the best right answer, less that of the best wrong one, in the first model. The
            model is right if it is above 0: ties do not help.
        margin_after: The same in the second.
    """

    direction: Direction
    outcome: Outcome
    query: Candidate
    right: Candidate
    before: Candidate
    after: Candidate
    margin_before: float
    margin_after: float


@dataclass(frozen=True)
class ChangedExamples:
    """Some queries that two models answer differently, and how many there are.

    Attributes:
        examples: The queries that were picked.
        counts: Number of queries by direction and outcome, as ``{"i2t": {"worse": 12, ...}, ...}``.
        queries: Number of all queries by direction.
    """

    examples: tuple[Example, ...]
    counts: Mapping[Direction, Mapping[Outcome, int]]
    queries: Mapping[Direction, int]

    def total(self, outcome: Outcome) -> int:
        """Number of queries of both directions with this outcome."""
        return sum(self.counts[way][outcome] for way in DIRECTIONS)

    def save(self, path: str | Path) -> None:
        """Writes the examples as JSON, pictures included, whole or not at all."""
        write_whole(Path(path), json.dumps({"format": _FORMAT, **asdict(self)}, indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "ChangedExamples":
        """Reads what :meth:`save` wrote; raises ValueError if the file holds anything else."""
        try:
            content = read_json(Path(path))
            if content.pop("format") != _FORMAT:
                raise ValueError(f"format must be {_FORMAT}")
            found: ChangedExamples = typed(cls, content)
            if set(found.queries) != set(DIRECTIONS) or min(map(found.total, OUTCOMES)) < 0:
                raise ValueError("there must be counts of both directions")
            return found
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"path must be of examples written by ChangedExamples.save; {path} is not: {error!r}. Delete it, or find the "
                "examples again with changed_examples."
            ) from error


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
        return Candidate(index, _decoded(pairs.tokens[index], tokenizer) if captions is None else captions[index])

    owners = pairs.image_index.cpu()
    embeddings = [_embeddings(encoder, pairs) for encoder in (before, after)]
    answers = {way: tuple(_answers(*found, owners, way) for found in embeddings) for way in DIRECTIONS}
    ranked = {(way, outcome): _ranked(answers[way], outcome) for outcome in OUTCOMES for way in DIRECTIONS}
    in_turn = [
        (*key, query)
        for row in zip_longest(*ranked.values())
        for key, query in zip(ranked, row, strict=True)
        if query is not None
    ]
    picked = sorted(in_turn[:count], key=lambda turn: OUTCOMES.index(turn[1]))
    return ChangedExamples(
        tuple(_example(way, outcome, query, answers[way], image, text) for way, outcome, query in picked),
        {way: {outcome: len(ranked[way, outcome]) for outcome in OUTCOMES} for way in DIRECTIONS},
        {"i2t": pairs.num_images, "t2i": pairs.num_captions},
    )


def _embeddings(encoder: DualEncoder, pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Normalised embeddings of images and captions, on the CPU, whose maxima of ties do not vary."""
    engine = PlainEngine(encoder, batch_size=64)
    images, texts = engine.embeddings("image", pairs.images), engine.embeddings("text", pairs.tokens)
    return normalised(images, "image").cpu(), normalised(texts, "text").cpu()


def _answers(
    images: Float[Tensor, "I J"], texts: Float[Tensor, "N J"], owners: Int[Tensor, "N"], direction: Direction
) -> Answers:
    """A model's answers; right and wrong as in :class:`Recall`: ties are wrong."""
    ids = torch.arange(len(images))
    queries, gallery, own, theirs = images, texts, ids, owners
    if direction == "t2i":
        queries, gallery, own, theirs = texts, images, owners, ids
    found = []
    for rows in tiles(len(queries), len(gallery), 2):
        similarity = queries[rows] @ gallery.T
        is_right = own[rows, None] == theirs[None]
        good, good_at = similarity.masked_fill(~is_right, -torch.inf).max(1)
        bad, bad_at = similarity.masked_fill(is_right, -torch.inf).max(1)
        found.append((torch.where(good > bad, good_at, bad_at), good_at, good - bad))
    return Answers(*map(torch.cat, zip(*found, strict=True)))


def _ranked(answers: Sequence[Answers], outcome: Outcome) -> list[int]:
    """Queries of one outcome, those whose margin changed most first."""
    before, after = answers
    was, now = before.margin > 0, after.margin > 0
    others = ~was & ~now & (before.best != after.best)
    queries = {"worse": was & ~now, "better": ~was & now, "both wrong": others}[outcome].nonzero().flatten()
    change = (after.margin - before.margin)[queries].abs()
    return list(queries[change.argsort(descending=True, stable=True)].tolist())


def _example(
    direction: Direction,
    outcome: Outcome,
    query: int,
    answers: Sequence[Answers],
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


def _decoded(tokens: Int[Tensor, "T"], tokenizer: Any) -> str:
    """A caption's words, by open_clip's tokenizers or transformers', which open_clip wraps; else its ids."""
    ids = tokens.tolist()
    own = getattr(tokenizer, "tokenizer", tokenizer)
    if not hasattr(own, "decode"):
        return " ".join(map(str, ids))
    if hasattr(own, "all_special_ids") and not hasattr(own, "eot_token_id"):
        return str(own.decode(ids, skip_special_tokens=True)).strip()
    words = ids[: ids.index(own.eot_token_id)] if own.eot_token_id in ids else ids
    return str(own.decode([token for token in words if token != own.sot_token_id])).strip()


Levels = tuple[Float[Tensor, "C"], Float[Tensor, "C"]]
"""The values of black and of white in each channel."""


def picture_levels(images: Shaped[Tensor, "I ..."]) -> Levels | None:
    """Black and white of normalised images ``[I, C, H, W]``, as their extreme values; None unless of 1 or 3 channels."""
    if images.ndim != 4 or images.shape[1] not in {1, 3}:
        return None
    flat = images.detach().float().cpu().transpose(0, 1).flatten(1)
    return flat.amin(1), flat.amax(1)


def to_picture(image: Shaped[Tensor, "C H W"], levels: Levels) -> Image.Image:
    """An 8-bit picture of one image, grey if it has one channel."""
    low, high = (level[:, None, None] for level in levels)
    shares = (image.detach().float().cpu() - low) / (high - low).clamp_min(1e-12)
    pixels = (255 * shares.clamp(0, 1)).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def thumbnail(image: Shaped[Tensor, "C H W"], levels: Levels, most: int) -> str:
    """A PNG of at most ``most`` pixels on a side, in base64."""
    picture = to_picture(image, levels)
    picture.thumbnail((most, most))
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode("ascii")
