"""Doors to everything outside: files, links and JSON, written whole or not at all; no torch, no model.

Pictures and URLs have theirs in ``_pictures`` and ``_urls``, whose imports take longer.
"""

from ._files import (
    MOST_TEXT,
    OutsideError,
    holds,
    is_plain,
    list_files,
    open_inside,
    open_regular,
    printable,
    resolve_inside,
    sha256_of,
)
from ._folder import SAVING, located, write_folder, write_whole
from ._json import parse_json, read_json, typed
from ._lock import hold

__all__ = [
    "MOST_TEXT",
    "SAVING",
    "OutsideError",
    "hold",
    "holds",
    "is_plain",
    "list_files",
    "located",
    "open_inside",
    "open_regular",
    "parse_json",
    "printable",
    "read_json",
    "resolve_inside",
    "sha256_of",
    "typed",
    "write_folder",
    "write_whole",
]
