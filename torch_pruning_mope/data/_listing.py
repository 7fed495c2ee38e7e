"""Lists of images with their captions: tables, lines of JSON, and folders."""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from .._io import MOST_TEXT, OutsideError, list_files, open_inside, open_regular, parse_json, resolve_inside
from ..errors import DataError
from ._decode import as_captions
from ._skipped import Problem, Reason

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
METADATA = "metadata.jsonl"
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
NOT_FOLLOWED = ": a link to a folder, which is entered with follow_links=True alone"


class CaptionedImage(NamedTuple):
    """One image file, relative to the root of its dataset or absolute, and everything that is said of it."""

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

    def refuse(self, reason: Reason, where: str) -> None:
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
    """Reads a table with a header line and a caption a line, as open_clip's CsvDataset does; rows of an image are put together.

    Args:
        path: The file.
        separator: Stands between the columns; None for a tab if the header has one, else a comma.
        image_key: Name of the column of image files.
        caption_key: Name of the column of captions.
        encoding: Of the text.

    Returns:
        Its images.

    Raises:
        DataError: The header lacks a column, or the file is no table.
    """
    listing = Listing()
    with _text(path, encoding) as file:
        header = file.readline(MOST_TEXT)
        file.seek(0)
        separator = separator or ("\t" if "\t" in header else ",")
        try:
            rows = csv.DictReader(file, delimiter=separator)
            missing = [key for key in (image_key, caption_key) if key not in (rows.fieldnames or [])]
            if missing:
                raise DataError(
                    f"{path}: the first line must name the columns {image_key} and {caption_key}, separated by "
                    f"{separator!r}, found {list(rows.fieldnames or [])}; set image_key, caption_key and separator"
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
            raise DataError(f"{path}: must be a table, found otherwise: {error}; check its separator") from error
    return listing


def read_lines(path: Path, *, image_key: str, caption_key: str) -> Listing:
    """Reads a JSON object a line, such as the `metadata.jsonl` of Hugging Face's image folders.

    Args:
        path: The file.
        image_key: Key of an object's image file.
        caption_key: Key of its caption, or list of captions.

    Returns:
        Its images; lines of one image are put together.

    Raises:
        DataError: No line has these keys.
    """
    listing = Listing()
    keys: dict[str, None] = {}
    with _opened(path) as file:
        for number in itertools.count(1):
            where = f"{path.name}:{number}"
            if not (line := file.readline(MOST_TEXT)):
                break
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
            f"{path}: lines must be JSON objects with {image_key} and {caption_key}, found the keys {list(keys)[:20]}; set "
            "image_key and caption_key"
        )
    return listing


def read_folder(folder: Path, *, image_key: str, caption_key: str, encoding: str, follow_links: bool) -> Listing:
    """Reads a folder of images, with its subfolders, in alphabetical order.

    An image's captions are the lines of the text file of the same name (`a.jpg`, `a.txt`), and those in `metadata.jsonl`.

    Args:
        folder: The folder.
        image_key: Key of `metadata.jsonl` for image files.
        caption_key: Key for captions.
        encoding: Of text files.
        follow_links: Enters links to folders, and reads files outside.

    Returns:
        Its images.

    Raises:
        DataError: There are no images.
    """
    found, links = list_files(folder, follow_links=follow_links)
    files = [path for path in found if path.suffix.lower() in IMAGE_SUFFIXES]
    if not files:
        suffixes = sorted({path.suffix or path.name for path in folder.iterdir()})
        raise DataError(
            f"{folder}: a folder must hold images with text files beside them, or shards (*.tar), found "
            f"{', '.join(suffixes[:10]) or 'nothing'}{NOT_FOLLOWED if links else ''}; pass the folder of the images"
        )
    listing = Listing(str(path.relative_to(folder)) for path in files)
    for link in links:
        listing.refuse("file outside", f"{link}{NOT_FOLLOWED}")
    if os.path.lexists(folder / METADATA):
        metadata = _inside(folder, METADATA, follow_links)
        described = read_lines(metadata, image_key=image_key, caption_key=caption_key)
        listing.problems += [problem for problem in described.problems if problem.reason == "entry malformed"]
        for entry in described.entries:
            listing.add(entry.name, entry.captions, metadata.name)
    silent = set(listing.without_captions)
    texts = {path for path in found if path.suffix == ".txt"}
    for path in files:
        name, text = str(path.relative_to(folder)), path.with_suffix(".txt")
        captions: tuple[str, ...] = ()
        try:
            if text in texts:
                with open_inside(folder, text, follow_links=follow_links, most=MOST_TEXT) as file:
                    captions = as_captions(file.read().decode(marked(encoding)).splitlines())
        except (OSError, ValueError) as error:
            reason: Reason = "file outside" if isinstance(error, OutsideError) else "entry malformed"
            listing.refuse(reason, f"{text.relative_to(folder)}: {error}")
            continue
        if captions or name in silent:
            listing.add(name, captions, "no text file, or a blank one")
    return listing


def _inside(folder: Path, name: str, follow_links: bool) -> Path:
    try:
        return resolve_inside(folder, name, follow_links=follow_links)
    except OSError as error:
        raise DataError(f"{folder / name}: must be a file of its folder, found it {error.strerror}") from error


def _opened(path: Path) -> io.BufferedReader:
    try:
        return open_regular(path)
    except OSError as error:
        raise DataError(f"{path}: must be a file, found it {error.strerror}") from error


def _text(path: Path, encoding: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(_opened(path), newline="", encoding=marked(encoding), errors="replace")


def marked(encoding: str) -> str:
    """Returns the name of an encoding, in which UTF-8 may begin with a byte order mark; raises DataError for an unknown one."""
    try:
        "a".encode(encoding)
    except (LookupError, ValueError) as error:
        raise DataError(f"encoding: must be one that Python knows, found {encoding!r}; latin-1 or cp1252?") from error
    return "utf-8-sig" if codecs.lookup(encoding).name == "utf-8" else encoding
