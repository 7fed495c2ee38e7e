"""Retrieval queries that two models answer differently, as they are kept in a run folder."""

import base64
import binascii
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from .._io import write_whole
from ._text import clean

Direction = Literal["i2t", "t2i"]
Outcome = Literal["worse", "better", "both wrong"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)
_FORMAT = 1
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Candidate:
    """An image or a caption: a query, or an answer.

    Attributes:
        index: Its number among the images or captions of the pairs.
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
        query: What was asked about.
        right: The right answer; of several captions, the one that the second model likes best.
        before: What the first model answered.
        after: What the second answered.
        margin_before: Cosine similarity of the best right answer, less that of the best wrong one, to the first model. The
            model is right if it is above 0: ties do not help.
        margin_after: The same to the second.
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
        counts: How many there are of each direction and outcome, as ``{"i2t": {"worse": 12, ...}, ...}``.
        queries: How many queries there were in each direction.
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
        """How many queries of both directions came out so."""
        return sum(counts[outcome] for counts in self.counts.values())

    def save(self, path: str | Path) -> None:
        """Writes the examples as JSON, pictures included, whole or not at all.

        Args:
            path: The file.
        """
        write_whole(Path(path), json.dumps({"format": _FORMAT, **asdict(self)}, indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "ChangedExamples":
        """Reads what :meth:`save` wrote. Every entry is checked, pictures too, because it ends up in a page.

        Args:
            path: The file.

        Returns:
            The examples.

        Raises:
            ValueError: If the file holds none.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            if content["format"] != _FORMAT:
                raise ValueError(f"format must be {_FORMAT}; found {content['format']!r}")
            counts = {way: {name: int(content["counts"][way][name]) for name in OUTCOMES} for way in DIRECTIONS}
            queries = {way: int(content["queries"][way]) for way in DIRECTIONS}
            return cls(tuple(_example(entry) for entry in content["examples"]), counts, queries)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"path must be of examples written by ChangedExamples.save; {path} is not: {error!r}. Delete it, or find the "
                "examples again with changed_examples."
            ) from error


def _example(entry: dict[str, Any]) -> Example:
    if entry["direction"] not in DIRECTIONS or entry["outcome"] not in OUTCOMES:
        raise ValueError(f"unknown direction or outcome: {entry['direction']!r}, {entry['outcome']!r}")
    margins = [float(entry[name]) for name in ("margin_before", "margin_after")]
    if not all(map(math.isfinite, margins)):
        raise ValueError(f"margins must be finite; found {margins}")
    query, right, before, after = (_candidate(entry[name]) for name in ("query", "right", "before", "after"))
    return Example(entry["direction"], entry["outcome"], query, right, before, after, *margins)


def _candidate(entry: dict[str, Any]) -> Candidate:
    caption, picture = entry["caption"], entry["picture"]
    if picture is not None:
        try:
            content = base64.b64decode(picture, validate=True)
        except binascii.Error as error:
            raise ValueError(f"a picture must be in base64: {error}") from error
        if not content.startswith(_PNG):
            raise ValueError("a picture must be a PNG file")
    return Candidate(int(entry["index"]), None if caption is None else clean(str(caption)), picture)
