"""A lock on a folder that goes with the process that holds it, however that ends."""

import json
import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from ..errors import FolderInUseError
from ._json import parse_json

LOCK = ".lock"
_held: dict[tuple[Path, int], int] = {}
"""Open lock files, by folder and by the thread that holds it."""


@contextmanager
def hold(folder: Path, what: str = "work") -> Iterator[None]:
    """Holds a folder for this thread, which may enter again; nobody else can hold it meanwhile."""
    # The folder is made if it does not exist, and removed again if nothing was put into it. The file ``.lock`` in it
    # names the holder. Where there are no locks (Windows, some network file systems) nobody is kept out.
    if folder.is_file():  # one look: a folder that others hold may go at any moment
        raise NotADirectoryError(f"folder must be a folder, or nothing yet; found a file at {folder}. Name another.")
    place = folder.resolve()
    key = place, threading.get_ident()
    if key in _held:
        yield
        return
    missing = [parent for parent in (place, *place.parents) if not parent.exists()]
    _held[key] = _locked(folder, place / LOCK, what)
    try:
        yield
    finally:
        if (handle := _held.pop(key, None)) is not None:
            _unlock(place / LOCK, handle)
            for made in missing:
                with suppress(OSError):  # something is in it
                    made.rmdir()


def _locked(folder: Path, file: Path, what: str) -> int:
    """Opens a lock file, and locks it where there are locks."""
    while True:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(file, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
        except (FileNotFoundError, FileExistsError):  # its holder has removed the folder since
            if file.parent.exists() and not file.parent.is_dir():
                raise
            continue
        if sys.platform == "win32":
            return handle
        import fcntl

        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(handle)
            os.close(handle)
            raise FolderInUseError(
                f"folder must be in use by nobody else; {folder} is held by {holder}. Wait, or name another."
            ) from None
        except OSError:  # a file system without locks
            return handle
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), file.stat()):
                _sign(handle, what)
                return handle
        os.close(handle)  # its holder has removed it since it was opened


def _close_in_child() -> None:
    """A worker that outlives its killed parent must not hold what the parent held."""
    for handle in _held.values():
        os.close(handle)
    _held.clear()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_close_in_child)


def _sign(handle: int, what: str) -> None:
    since = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
    os.truncate(handle, 0)
    os.write(
        handle, json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "for": what, "since": since}).encode()
    )


def _unlock(file: Path, handle: int) -> None:
    with suppress(OSError):  # the folder may have been moved or removed
        if os.path.samestat(os.fstat(handle), file.stat()):
            file.unlink()
    os.close(handle)


def _holder(handle: int) -> str:
    """Returns the holder in words; the file may be half written."""
    try:
        found = parse_json(os.read(handle, 1000))
        if found["pid"] == os.getpid() and found["host"] == socket.gethostname():
            return "another thread of this process"
        return f"process {int(found['pid'])} on {found['host']} ({found['for']}, since {found['since']})"
    except (ValueError, KeyError, TypeError, OSError):
        return "another process"
