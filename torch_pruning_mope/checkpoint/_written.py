"""A checkpoint takes the place of another at one instant: whatever ends the process, the old or the new one is there, whole.

What is saved is first written beside, in a folder of any name. That folder is then renamed to ``SAVING``: from this instant on
:func:`located` finds the new files in it, wherever the old ones are. Then they move to their places, one by one, and the folder
goes. A save that is killed before the instant is as if it had not begun; one that is killed after it is finished by the next.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from ._files import SAVING

_OLD = ".old"
"""Folder in ``SAVING`` of what had to make room."""
_PREFIX, _SUFFIX = ".mope-", ".part"


@contextmanager
def written(folder: Path, names: Sequence[str]) -> Iterator[Path]:
    """A folder to write into; when all is well, what is in it takes its place in another, at one instant.

    Processes of one machine that write to the same folder wait for each other.

    Args:
        folder: Where things belong. It is made if need be, and what else is in it stays.
        names: Files and folders to move there, in this order; those that were there go. Names of nothing are skipped, and an
            empty folder only takes away what was there.

    Yields:
        The folder to write into.

    Raises:
        ValueError: If ``folder`` is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"folder must be a folder, or nothing yet; found a file at {folder}.")
    made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        for parent in reversed(made):
            stack.callback(_remove_empty, parent)  # only if nothing came of it
        stack.enter_context(_locked(folder))
        for left in folder.glob(f"{_PREFIX}*{_SUFFIX}"):  # of a save that was killed
            shutil.rmtree(left, ignore_errors=True)
        if (folder / SAVING).is_dir():
            _move(folder, names)
            _clear(folder, names)
        part = Path(tempfile.mkdtemp(prefix=_PREFIX, suffix=_SUFFIX, dir=folder))
        stack.callback(shutil.rmtree, part, ignore_errors=True)
        yield part
        (part / _OLD).mkdir()
        for path in (*part.rglob("*"), part):
            _sync(path)
        new = [name for name in names if os.path.lexists(part / name)]
        part.rename(folder / SAVING)
        try:
            _move(folder, new)
        except BaseException:
            _move_back(folder, new)
            (folder / SAVING).rename(part)
            raise
        _clear(folder, new)


def _move(folder: Path, names: Sequence[str]) -> None:
    """Moves what has been saved to its place. It may be called again at whatever point it was interrupted."""
    saved, old = folder / SAVING, folder / SAVING / _OLD
    _sync(folder)
    for name in names:
        if os.path.lexists(saved / name):
            if os.path.lexists(folder / name):
                (folder / name).replace(old / name)
            (saved / name).replace(folder / name)
    _sync(folder)


def _move_back(folder: Path, names: Sequence[str]) -> None:
    """The reverse; what has been saved stays the checkpoint until its folder has another name."""
    saved, old = folder / SAVING, folder / SAVING / _OLD
    for name in reversed(names):
        if os.path.lexists(folder / name) and not os.path.lexists(saved / name):
            (folder / name).replace(saved / name)
        if os.path.lexists(old / name):
            (old / name).replace(folder / name)


def _clear(folder: Path, names: Sequence[str]) -> None:
    """Removes what made room, once all is in its place."""
    for name in names:
        _remove_empty(folder / name)
    shutil.rmtree(folder / SAVING, ignore_errors=True)


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def _sync(path: Path) -> None:
    """Has the disk hold a file or folder before what comes next, lest a power failure mix the order up."""
    with suppress(OSError):  # not every system opens folders, and a disk that cannot is no worse off
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Waits for other processes that write to the folder; the lock goes with the process, however that ends."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # file systems without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
