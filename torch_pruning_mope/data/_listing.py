"""Lists of images with their captions: tables, lines of JSON, and folders."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from torch_pruning_mope.data._decode import as_captions
from torch_pruning_mope.data._skipped import Problem, Reason
from torch_pruning_mope.errors import DataError

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
METADATA = "metadata.jsonl"


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


def read_table(path: Path, *, separator: str | None, image_key: str, caption_key: str) -> Listing:
    """Reads a table with a header line and a caption a line, as open_clip's CsvDataset does.

    Args:
        path: The file.
        separator: What stands between the columns; None for a tab if the header has one, else a comma.
        image_key: Name of the column of image files.
        caption_key: Name of the column of captions.

    Returns:
        Its images; rows of one image are put together.

    Raises:
        DataError: The header lacks a column, or the file is no table.
    """
    listing = Listing()
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        header = file.readline()
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
                elif "�" in image + text:
                    listing.refuse("entry malformed", f"{where}: not UTF-8")
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
        image_key: Where an object has its image file.
        caption_key: Where it has its caption, or a list of captions.

    Returns:
        Its images; lines of one image are put together.

    Raises:
        DataError: No line has these keys.
    """
    listing = Listing()
    keys: dict[str, None] = {}
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            where = f"{path.name}:{number}"
            if not line.strip():
                continue
            try:
                row = json.loads(line)
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


def read_folder(folder: Path, *, image_key: str, caption_key: str) -> Listing:
    """Reads a folder of images, with its subfolders.

    An image's captions are the lines of the text file of the same name (`a.jpg`, `a.txt`), and what `metadata.jsonl` has.

    Args:
        folder: The folder.
        image_key: Where `metadata.jsonl` has its image files.
        caption_key: Where it has its captions.

    Returns:
        Its images, in alphabetical order.

    Raises:
        DataError: There are no images.
    """
    files = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in IMAGE_SUFFIXES]
    if not files:
        suffixes = sorted({path.suffix or path.name for path in folder.iterdir()})
        raise DataError(
            f"{folder}: a folder must hold images with text files beside them, or shards (*.tar), found "
            f"{', '.join(suffixes[:10]) or 'nothing'}; pass the folder of the images"
        )
    listing = Listing(str(path.relative_to(folder)) for path in files)
    if (metadata := folder / METADATA).is_file():
        described = read_lines(metadata, image_key=image_key, caption_key=caption_key)
        listing.problems += [problem for problem in described.problems if problem.reason == "entry malformed"]
        for entry in described.entries:
            listing.add(entry.name, entry.captions, metadata.name)
    silent = set(listing.without_captions)
    for path in files:
        name, text = str(path.relative_to(folder)), path.with_suffix(".txt")
        try:
            captions = as_captions(text.read_text(encoding="utf-8-sig").splitlines() if text.is_file() else [])
        except ValueError as error:
            listing.refuse("entry malformed", f"{text.relative_to(folder)}: {error}")
            continue
        if captions or name in silent:
            listing.add(name, captions, "no text file, or a blank one")
    return listing
