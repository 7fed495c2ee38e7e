"""Files that were found on disk or named by a file: never outside their folder, never anything but a regular file."""

import errno
import hashlib
import io
import os
import re
import stat
from pathlib import Path

MOST_TEXT = 2**20
"""Bytes of a text that belongs to one sample."""
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,99}")


class OutsideError(OSError):
    """A path leads out of the folder that it was found in."""


def resolve_inside(folder: Path, name: str | Path, *, follow_links: bool = False) -> Path:
    """Returns a path, relative to the folder or absolute, with all links resolved; raises OSError if it leads out of it."""
    try:
        target = Path(os.path.realpath(folder / name, strict=True))
        root = Path(os.path.realpath(folder))
    except ValueError as error:  # NUL, or a lone surrogate
        raise OSError(errno.EINVAL, "no valid name of a file") from error
    if not (follow_links or target.is_relative_to(root) or _in_blobs(root, target)):
        raise OutsideError(
            errno.EPERM,
            f"outside {printable(str(folder))} once links are resolved; pass its folder as root, or follow_links=True",
        )
    return target


def _in_blobs(root: Path, target: Path) -> bool:
    """Returns True if a snapshot of the Hub's cache, ``…/datasets--name/snapshots/revision``, links there."""
    for place in (root, *root.parents):
        if place.parent.name == "snapshots" and place.parent.parent.name.startswith(("models--", "datasets--")):
            return target.parent == place.parent.parent / "blobs"
    return False


def open_regular(path: Path, most: int | None = None) -> io.BufferedReader:
    """Opens a regular file of at most ``most`` bytes, or raises OSError; never waits for a FIFO."""
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    handle = os.open(path, flags)
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "no regular file")
        if most is not None and found.st_size > most:
            raise OSError(errno.EFBIG, f"has {found.st_size} bytes, and at most {most} are read")
        return io.BufferedReader(io.FileIO(handle, "rb"))
    except BaseException:
        os.close(handle)
        raise


def open_inside(
    folder: Path, name: str | Path, *, follow_links: bool = False, most: int | None = None
) -> io.BufferedReader:
    """Opens a regular file in a folder, or raises OSError."""
    return open_regular(resolve_inside(folder, name, follow_links=follow_links), most)


def is_plain(name: str) -> bool:
    """Returns True for a name that can only be of a file in the folder that it is joined to."""
    return _PLAIN.fullmatch(name) is not None


def sha256_of(path: Path) -> str:
    """SHA-256 of a regular file, in hexadecimal."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def holds(path: Path, mark: str, most: int | None = None, *, within: int = -1) -> bool:
    """Returns True for a regular file that holds a text, such as its writer's mark, in its first ``within`` bytes."""
    try:
        with open_regular(path, most) as file:
            return mark.encode() in file.read(within)
    except OSError:
        return False


def list_files(folder: Path, *, follow_links: bool = False) -> tuple[list[Path], list[Path]]:
    """Returns the files of a folder and its subfolders, sorted, and links to folders, which are entered if followed."""
    files: list[Path] = []
    links: list[Path] = []
    left: list[tuple[str, frozenset[str]]] = [(str(folder), frozenset())]
    while left:
        place, above = left.pop()
        above |= {os.path.realpath(place)}
        with os.scandir(place) as entries:
            for entry in entries:
                if not entry.is_dir():
                    files.append(Path(entry.path))
                elif entry.is_symlink() and not follow_links:
                    links.append(Path(entry.path))
                elif os.path.realpath(entry.path) not in above:  # a link upwards
                    left.append((entry.path, above))
    return sorted(files), sorted(links)


def printable(text: str, most: int = 200) -> str:
    """Text of unknown origin for a message: control characters and surrogates escaped, the middle of a long one left out."""
    text = text if len(text) <= most else f"{text[: most // 2]}…{text[-most // 2 :]}"
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )
