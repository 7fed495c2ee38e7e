"""Retrieval queries that two models answer differently, as a run folder holds them."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from .._io import read_json, write_whole

Direction = Literal["i2t", "t2i"]
Outcome = Literal["worse", "better", "both wrong"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)
_FORMAT = 1


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

    def __len__(self) -> int:
        return len(self.examples)

    def __iter__(self) -> Iterator[Example]:
        return iter(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index]

    def total(self, outcome: Outcome) -> int:
        """Number of queries of both directions with this outcome."""
        return sum(counts[outcome] for counts in self.counts.values())

    def save(self, path: str | Path) -> None:
        """Writes the examples as JSON, pictures included, whole or not at all."""
        write_whole(Path(path), json.dumps({"format": _FORMAT, **asdict(self)}, indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "ChangedExamples":
        """Reads what :meth:`save` wrote; raises ValueError if the file holds anything else."""
        try:
            content = read_json(Path(path))
            if content["format"] != _FORMAT:
                raise ValueError(f"format must be {_FORMAT}; found {content['format']!r}")
            counts = {way: {name: int(content["counts"][way][name]) for name in OUTCOMES} for way in DIRECTIONS}
            queries = {way: int(content["queries"][way]) for way in DIRECTIONS}
            return cls(tuple(_example(**entry) for entry in content["examples"]), counts, queries)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"path must be of examples written by ChangedExamples.save; {path} is not: {error!r}. Delete it, or find the "
                "examples again with changed_examples."
            ) from error


def _example(direction: Any, outcome: Any, margin_before: float, margin_after: float, **candidates: Any) -> Example:
    if direction not in DIRECTIONS or outcome not in OUTCOMES:
        raise ValueError(f"unknown direction or outcome: {direction!r}, {outcome!r}")
    made = {name: Candidate(**content) for name, content in candidates.items()}
    return Example(direction, outcome, **made, margin_before=float(margin_before), margin_after=float(margin_after))
