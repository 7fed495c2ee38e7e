"""One writer per folder."""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import FolderInUseError

LOCK, _HOLDER = ".mope-lock", ".mope-lock-holder"


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Holds a folder, which is made if need be, for this process; FolderInUseError names the process that holds it already."""
    folder.mkdir(parents=True, exist_ok=True)
    lock, holder = FileLock(folder / LOCK), folder / _HOLDER
    try:
        lock.acquire(timeout=0)
    except Timeout:
        who = "another process"
        with suppress(OSError):
            who = holder.read_text("utf-8")
        raise FolderInUseError(
            f"path must be a folder that nobody writes to; {folder} is held by {who}. Wait for it, or choose another path."
        ) from None
    try:
        holder.write_text(
            f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}", "utf-8"
        )
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()
