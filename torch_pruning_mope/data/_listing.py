"""Lists of images with their captions, from tables and lines of JSON."""

from __future__ import annotations

import codecs
import csv
import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from .._io import MOST_TEXT, open_regular, parse_json
from ..errors import DataError
from ._decode import as_captions
from ._skipped import Problem, SkipReason

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class CaptionedImage(NamedTuple):
    """One image file, relative to the root of its dataset or absolute, and its captions."""

    name: str
    captions: tuple[str, ...]


class Listing:
    """Images in the order of their first mention, each with all its captions, and the entries that are not usable."""

    def __init__(self, images: Iterable[str] = ()) -> None:
        self._found: dict[str, list[str]] = {os.path.normpath(name): [] for name in images}
        self.problems: list[Problem] = []

    def add(self, name: object, captions: Iterable[str], where: str) -> None:
        """Adds captions to an image, which may be new; `where` is the entry that says so."""
        captions = list(captions)
        if not (isinstance(name, str) and name.strip()):
            self.refuse("entry malformed", f"{where}: no image file")
        elif captions:
            self._found.setdefault(os.path.normpath(name), []).extend(captions)
        else:
            self.refuse("caption missing", f"{where}: {name}")

    def refuse(self, reason: SkipReason, where: str) -> None:
        """Notes an entry that is not usable."""
        self.problems.append(Problem(reason, where))

    @property
    def entries(self) -> list[CaptionedImage]:
        """All images that have captions."""
        return [CaptionedImage(name, tuple(captions)) for name, captions in self._found.items() if captions]

    @property
    def without_captions(self) -> list[str]:
        """Images that have none."""
        return [name for name, captions in self._found.items() if not captions]


def read_table(path: Path, *, separator: str | None, image_key: str, caption_key: str, encoding: str) -> Listing:
    """Returns the images of a table with a header line and a caption a line, as open_clip's CsvDataset reads it."""
    # The separator None is a tab if the header has one, else a comma.
    listing = Listing()
    with io.TextIOWrapper(_open(path), newline="", encoding=marked(encoding), errors="replace") as file:
        header = file.readline(MOST_TEXT)
        file.seek(0)
        separator = separator or ("\t" if "\t" in header else ",")
        try:
            rows = csv.DictReader(file, delimiter=separator)
            if not {image_key, caption_key} <= set(rows.fieldnames or []):
                raise DataError(
                    f"{path} must name the columns {image_key} and {caption_key} in its first line, separated by "
                    f"{separator!r}; found {list(rows.fieldnames or [])}. Set image_key, caption_key and separator."
                )
            for row in rows:
                where, image, text = f"{path.name}:{rows.line_num}", row[image_key], row[caption_key]
                if None in row or None in row.values():
                    listing.refuse("entry malformed", f"{where}: not as many columns as the header")
                elif REPLACEMENT in image + text:
                    listing.refuse("entry malformed", f"{where}: not {encoding.upper()}; pass encoding")
                elif "\n" in text and "\t" in text:
                    listing.refuse("entry malformed", f"{where}: a quote that is not closed swallowed lines")
                else:
                    listing.add(image, as_captions(text), where)
        except (csv.Error, TypeError) as error:
            raise DataError(f"{path} must be a table; found otherwise: {error}. Check its separator.") from error
    return listing


def read_lines(path: Path, *, image_key: str, caption_key: str) -> Listing:
    """Returns the images of a JSON object a line, such as the `metadata.jsonl` of Hugging Face's image folders."""
    # A caption may be a list of captions.
    listing = Listing()
    keys: dict[str, None] = {}
    with _open(path) as file:
        for number, line in enumerate(iter(lambda: file.readline(MOST_TEXT), b""), 1):
            where = f"{path.name}:{number}"
            if not line.strip():
                continue
            try:
                row = parse_json(line)
            except ValueError as error:  # also of text that is not UTF-8
                listing.refuse("entry malformed", f"{where}: {error}")
                continue
            if not isinstance(row, dict):
                listing.refuse("entry malformed", f"{where}: no JSON object")
                continue
            keys |= dict.fromkeys(row)
            listing.add(row.get(image_key), as_captions(row.get(caption_key)), where)
    if not {image_key, caption_key} <= keys.keys():
        raise DataError(
            f"{path} must have lines of JSON objects with {image_key} and {caption_key}; found the keys {list(keys)[:20]}. Set "
            "image_key and caption_key."
        )
    return listing


def marked(encoding: str) -> str:
    """Returns the name of an encoding, in which UTF-8 may begin with a byte order mark; raises DataError for an unknown one."""
    try:
        "a".encode(encoding)
    except (LookupError, ValueError) as error:
        raise DataError(f"encoding must be one that Python knows; found {encoding!r}. latin-1 or cp1252?") from error
    return "utf-8-sig" if codecs.lookup(encoding).name == "utf-8" else encoding


def _open(path: Path) -> io.BufferedReader:
    try:
        return open_regular(path)
    except OSError as error:
        raise DataError(f"{path} must be a file; found otherwise: {error.strerror}.") from error
