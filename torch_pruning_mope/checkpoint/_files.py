"""Files of a checkpoint: read from nowhere else than its folder, written all or none."""

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

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
    root, path = folder.resolve(), folder / name
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


@contextmanager
def written(folder: Path, names: Sequence[str]) -> Iterator[Path]:
    """A folder to write into; when all is well, what is in it takes its place in another.

    Args:
        folder: Where things belong. It is made if need be, and what else is in it stays.
        names: Files and folders to move there, in this order; those that were there go. Names of nothing are skipped.

    Yields:
        The folder to write into.

    Raises:
        ValueError: If ``folder`` is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"folder must be a folder, or nothing yet; found a file at {folder}.")
    made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=".", suffix=".part", dir=folder))
    try:
        (part / "new").mkdir()
        yield part / "new"
        _exchange(part, folder, [name for name in names if (part / "new" / name).exists()])
    finally:
        shutil.rmtree(part, ignore_errors=True)
        for parent in made:
            with suppress(OSError):
                parent.rmdir()  # only if nothing came of it


def _exchange(part: Path, folder: Path, names: Sequence[str]) -> None:
    """Moves things from ``part/new`` into the folder; if one cannot be moved, all is as before."""
    (part / "old").mkdir()
    done: list[str] = []
    try:
        for name in names:
            done.append(name)
            if os.path.lexists(folder / name):
                (folder / name).replace(part / "old" / name)
            (part / "new" / name).replace(folder / name)
    except BaseException:
        for name in reversed(done):
            if os.path.lexists(folder / name) and not os.path.lexists(part / "new" / name):
                (folder / name).replace(part / "new" / name)
            if os.path.lexists(part / "old" / name):
                (part / "old" / name).replace(folder / name)
        raise
