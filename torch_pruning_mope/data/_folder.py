"""Folders of images with text files beside them."""

from __future__ import annotations

import os
from pathlib import Path

from .._io import MOST_TEXT, OutsideError, list_files, open_inside, resolve_inside
from ..errors import DataError
from ._decode import as_captions
from ._listing import Listing, marked, read_lines
from ._skipped import SkipReason

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
METADATA = "metadata.jsonl"
NOT_ENTERED = "a link to a folder, entered with follow_links=True alone"


def read_folder(folder: Path, *, image_key: str, caption_key: str, encoding: str, follow_links: bool) -> Listing:
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
