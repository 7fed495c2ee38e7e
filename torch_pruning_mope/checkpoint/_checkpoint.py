"""``config.json`` of a checkpoint: what the model was, and which layers, heads, neurons and channels are left."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as short
from typing import Any

from .._io import open_regular, read_json
from ..errors import ModelLoadError
from . import _base
from ._base import Base
from ._files import BASE, CONFIG, WEIGHTS, base_files, inside
from ._spec import Spec, read_kept, read_object, read_spec

FORMAT, VERSION = "torch-pruning-mope", 2
_FIELDS = ("format", "format_version", "versions", "base", "towers", "heads_left", "buffers", "sha256")
_MOST_BYTES = 2**22
_HASH = re.compile(r"[0-9a-f]{64}")
_FLOATS = ("bfloat16", "float16", "float32", "float64")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose configuration has been read."""

    folder: Path
    base: Base
    spec: Spec
    heads_left: dict[str, tuple[int, ...]]
    """Heads of the base that are left, by name of the value projection that records them."""
    buffers: dict[str, str]
    """Types of the buffers that are not among the weights and not float32, by name."""
    sha256: dict[str, str]
    """SHA-256 of the weights and of the base's files, by path in the folder."""


def is_checkpoint(folder: Path) -> bool:
    """Returns True for a folder that looks like a checkpoint of this package, whole or damaged."""
    try:
        with open_regular(inside(folder, CONFIG), _MOST_BYTES) as file:
            return f'"{FORMAT}"'.encode() in file.read()
    except (ModelLoadError, OSError):
        return False


def read_checkpoint(folder: Path) -> Checkpoint:
    """Reads the configuration and checks the files of the base, but not the weights."""
    content = _content(folder)
    digests = _texts(content["sha256"], "sha256")
    for name, digest in digests.items():
        if (name != WEIGHTS and not name.startswith(f"{BASE}/")) or not _HASH.fullmatch(digest):
            raise ModelLoadError(
                f"sha256 must be of {WEIGHTS} and files in {BASE}; found {short(name)}: {short(digest)}."
            )
    if WEIGHTS not in digests:
        raise ModelLoadError(f"sha256 must name {WEIGHTS}; found {sorted(digests)[:8]}.")
    buffers = _texts(content["buffers"], "buffers")
    if not set(buffers.values()) <= set(_FLOATS):
        raise ModelLoadError(f"buffers must be of {', '.join(_FLOATS)}; found {short(sorted(buffers.values()))}.")
    return Checkpoint(
        folder,
        Base(_base.check(content["base"]), base_files(folder, digests)),
        read_spec(content["towers"]),
        _heads(content["heads_left"]),
        buffers,
        digests,
    )


def _content(folder: Path) -> Mapping[str, Any]:
    """Returns the fields of the configuration, of this version."""
    try:
        content = read_json(inside(folder, CONFIG), _MOST_BYTES)
    except (OSError, ValueError) as error:
        if isinstance(error, ModelLoadError):
            raise
        raise ModelLoadError(f"{CONFIG} must be JSON of at most {_MOST_BYTES} bytes; found: {error}.") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else content
        raise ModelLoadError(f"{CONFIG} must be of a checkpoint of {FORMAT}; found format {short(found)}.")
    version = content.get("format_version")
    if type(version) is not int or version != VERSION:
        raise ModelLoadError(
            f"{CONFIG} must be of format version {VERSION}; found {short(version)}. Save it again with this version, or "
            "install the one that wrote it."
        )
    return read_object(content, CONFIG, *_FIELDS)


def _texts(content: Any, where: str) -> dict[str, str]:
    if not isinstance(content, dict) or not all(isinstance(value, str) for value in content.values()):
        raise ModelLoadError(f"{where} must be an object of texts; found {short(content)}.")
    return content


def _heads(content: Any) -> dict[str, tuple[int, ...]]:
    found = {}
    for name, heads in _texts(content, "heads_left").items():
        kept = read_kept(heads, f"heads_left.{name[:80]}")
        found[name] = kept if isinstance(kept, tuple) else ()
    return found
