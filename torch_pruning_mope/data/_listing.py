"""Images with their captions, as tables, lines of JSON, annotation files and folders list them."""

import codecs
import csv
import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from .._io import (
    MOST_TEXT,
    OutsideError,
    list_files,
    open_inside,
    open_regular,
    parse_json,
    printable,
    read_json,
    resolve_inside,
)
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


def read_table(
    path: Path,
    *,
    image_key: str = "filepath",
    caption_key: str = "title",
    separator: str | None = None,
    encoding: str = "utf-8",
) -> Listing:
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


def read_lines(path: Path, *, image_key: str = "file_name", caption_key: str = "text") -> Listing:
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


FORMS = "COCO captions (images, annotations) or a Karpathy split (images with split and sentences)"


def read_annotations(path: Path, *, split: str | None = None) -> Listing:
    """Returns the images of a JSON file of either form; `split` is `test`, say, or `train+restval`, of a Karpathy file."""
    try:
        content: Any = read_json(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} must be JSON; found otherwise: {error}. Get the file again.") from error
    images = content.get("images") if isinstance(content, dict) else None
    if isinstance(images, list) and isinstance(content.get("annotations"), list):
        if split is not None:
            raise DataError(
                f"split must be left out for COCO, which has a file for each; found {split!r} for {path}. Pass that file, or "
                "divide this one with split_pairs."
            )
        return _coco(images, content["annotations"])
    if isinstance(images, list) and any(isinstance(image, dict) and "sentences" in image for image in images):
        return _karpathy(path, images, split)
    found = f"the keys {list(content)[:10]}" if isinstance(content, dict) else f"a {type(content).__name__}"
    raise DataError(
        f"{path} must be {FORMS}; found {found}. Pass captions_val2017.json, dataset_coco.json or their like."
    )


def _coco(images: list[Any], annotations: list[Any]) -> Listing:
    files: dict[object, str] = {}
    malformed = []
    for number, image in enumerate(images):
        match image:
            case {"id": int() | str() as identity, "file_name": str(name)}:
                files[identity] = name
            case _:
                malformed.append(f"images[{number}]: no id and file_name")
    listing = Listing(files.values())
    for where in malformed:
        listing.refuse("entry malformed", where)
    for number, annotation in enumerate(annotations):
        where = f"annotations[{number}]"
        match annotation:
            case {"image_id": int() | str() as identity, "caption": caption} if identity in files:
                listing.add(files[identity], as_captions(caption), where)
            case {"image_id": int() | str() as identity, "caption": _}:
                listing.refuse("entry malformed", f"{where}: image {identity!r} is not among the images")
            case _:
                listing.refuse("entry malformed", f"{where}: no image_id and caption")
    for name in listing.without_captions:
        listing.refuse("caption missing", name)
    return listing


def _karpathy(path: Path, images: list[Any], split: str | None) -> Listing:
    images = [image if isinstance(image, dict) else {} for image in images]
    splits = {_split(image) for image in images}
    wanted = splits if split is None else set(split.split("+"))
    if unknown := wanted - splits:
        raise DataError(
            f"split must be one of {printable(', '.join(sorted(splits)))} of {path}, or several joined by +; found "
            f"{', '.join(sorted(unknown))}."
        )
    listing = Listing()
    for number, image in enumerate(images):
        if _split(image) not in wanted:
            continue
        name, folder = image.get("filename"), image.get("filepath")  # COCO's has folders, Flickr30k's has none
        if isinstance(name, str) and isinstance(folder, str):
            name = f"{folder}/{name}"
        sentences = image.get("sentences")
        raw = [s.get("raw") for s in sentences if isinstance(s, dict)] if isinstance(sentences, list) else []
        listing.add(name, as_captions(raw), f"images[{number}]")
    return listing


def _split(image: dict[str, Any]) -> str:
    found = image.get("split")
    return found if isinstance(found, str) else "none"


IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
METADATA = "metadata.jsonl"
NOT_ENTERED = "a link to a folder, entered with follow_links=True alone"


def read_folder(
    folder: Path,
    *,
    image_key: str = "file_name",
    caption_key: str = "text",
    encoding: str = "utf-8",
    follow_links: bool = False,
) -> Listing:
    """Returns the images of a folder and its subfolders, in alphabetical order."""
    # An image's captions are the lines of the text file of the same name (`a.jpg`, `a.txt`), and those in
    # `metadata.jsonl`.
    found, links = list_files(folder, follow_links=follow_links)
    images = [path for path in found if path.suffix.lower() in IMAGE_SUFFIXES]
    if not images:
        suffixes = sorted({path.suffix or path.name for path in folder.iterdir()})
        raise DataError(
            f"{folder} must hold images with text files beside them, or shards (*.tar); found "
            f"{', '.join(suffixes[:10]) or 'nothing'}{f' and {NOT_ENTERED}' if links else ''}. Pass the folder of the images."
        )
    listing = Listing(str(path.relative_to(folder)) for path in images)
    for link in links:
        listing.refuse("file outside", f"{link}: {NOT_ENTERED}")
    _add_metadata(listing, folder, image_key, caption_key, follow_links)
    silent = set(listing.without_captions)
    texts = {path for path in found if path.suffix == ".txt"}
    for path in images:
        name, text = str(path.relative_to(folder)), path.with_suffix(".txt")
        captions: tuple[str, ...] = ()
        try:
            if text in texts:
                with open_inside(folder, text, follow_links=follow_links, most=MOST_TEXT) as file:
                    captions = as_captions(file.read().decode(marked(encoding)).splitlines())
        except (OSError, UnicodeError) as error:
            reason: SkipReason = "file outside" if isinstance(error, OutsideError) else "entry malformed"
            listing.refuse(reason, f"{text.relative_to(folder)}: {error}")
            continue
        if captions or name in silent:
            listing.add(name, captions, "no text file, or a blank one")
    return listing


def _add_metadata(listing: Listing, folder: Path, image_key: str, caption_key: str, follow_links: bool) -> None:
    if not os.path.lexists(folder / METADATA):
        return
    try:
        file = resolve_inside(folder, METADATA, follow_links=follow_links)
    except OSError as error:
        raise DataError(f"{folder / METADATA} must be a file of its folder; found it {error.strerror}.") from error
    described = read_lines(file, image_key=image_key, caption_key=caption_key)
    listing.problems += [problem for problem in described.problems if problem.reason == "entry malformed"]
    for entry in described.entries:
        listing.add(entry.name, entry.captions, METADATA)
