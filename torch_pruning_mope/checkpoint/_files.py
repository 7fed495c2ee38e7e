"""Files of a checkpoint, read from nowhere else than its folder."""

import hashlib
import re
from pathlib import Path

from .._io import located
from ..errors import ModelLoadError

CONFIG, WEIGHTS, CARD, BASE = "config.json", "model.safetensors", "README.md", "base"
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,99}")


def is_plain(name: str) -> bool:
    """Whether a name can only be of a file in the folder that it is joined to."""
    return _PLAIN.fullmatch(name) is not None


def inside(folder: Path, name: str) -> Path:
    """A file of a checkpoint.

    Args:
        folder: The checkpoint.
        name: Path in it.

    Returns:
        Where its content is. In the cache of the Hub's client, that is among the repository's blobs.

    Raises:
        ModelLoadError: If there is no such file, or it is elsewhere.
    """
    root, path = folder.resolve(), located(folder, name)
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise ModelLoadError(f"a checkpoint must hold {name}, found none that can be read in {folder}.") from error
    places = [root]
    if root.parent.name == "snapshots" and root.parent.parent.name.startswith("models--"):
        places.append(root.parent.parent / "blobs")
    if not any(target.is_relative_to(place) for place in places):
        raise ModelLoadError(f"{name} must lie inside of the checkpoint's folder, found a link out of {folder}.")
    if not target.is_file():
        raise ModelLoadError(f"{name} must be a file, found something else in {folder}.")
    return target


def checked(path: Path, name: str, size: object, sha256: object) -> Path:
    """A file, after a look at all of its bytes.

    Args:
        path: The file.
        name: Its name in the checkpoint, for messages.
        size: How many bytes it must have.
        sha256: Their digest.

    Returns:
        The path.

    Raises:
        ModelLoadError: If it is another file.
    """
    found = path.stat().st_size
    if found != size:
        raise ModelLoadError(
            f"{name} must have {size} bytes, found {found}: it was cut off or exchanged. Get it again."
        )
    if sha256_of(path) != sha256:
        raise ModelLoadError(f"{name} must be as it was written, found another SHA-256: it is damaged. Get it again.")
    return path


def sha256_of(path: Path) -> str:
    """Digest of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
