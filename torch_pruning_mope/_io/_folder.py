"""Files and sets of files written whole or not at all: after a kill the old or the new ones are there."""

import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path


def write_whole(path: Path, content: str | bytes | Callable[[Path], object]) -> None:
    """Writes a file beside its place, has the disk hold it, and renames it, so that a reader finds the old or the new file."""
    partial = path.with_name(f"{path.name[:200]}.{secrets.token_hex(4)}.part")  # ranks may write the same file
    try:
        if callable(content):
            content(partial)
        else:
            partial.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        sync(partial)
        partial.replace(path)
        sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Has the disk hold a file or a folder's entries before what comes next, in case the power fails."""
    with suppress(OSError):  # some systems cannot open folders
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


# Files of a set are first written to a folder of a random name. Renaming that folder to ``SAVING`` is the instant: from then on
# ``located`` finds the new files in it. Then they move to their places one by one, and the folder goes. A save that is killed
# before the instant leaves the old set; one that is killed after it is finished by the next save.
SAVING = ".mope-saving"
"""Folder in the target of files that have been saved and not moved to their places yet."""
_OLD = ".old"
"""Folder in ``SAVING`` of the files that were replaced."""
_PREFIX, _SUFFIX = ".mope-", ".part"


def located(folder: Path, name: str) -> Path:
    """Path of a file or folder in a target, which after an interrupted save may still be in ``SAVING``."""
    waits = _is_folder(folder / SAVING) and os.path.lexists(folder / SAVING / name.partition("/")[0])
    return folder / SAVING / name if waits else folder / name


@contextmanager
def write_folder(folder: Path) -> Iterator[Path]:
    """Yields a folder to write into; without an error, its files then replace those of the target at one instant."""
    # Processes of one machine that write to the same target wait for each other. Symbolic links under the names that
    # this function works with are removed, never followed.
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"folder must be a folder, or nothing yet; found a file at {folder}.")
    made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        for parent in reversed(made):
            stack.callback(_remove_empty, parent)  # removes it only if nothing was written
        stack.enter_context(_locked(folder))
        for left in folder.glob(f"{_PREFIX}*{_SUFFIX}"):  # of a save that was killed
            shutil.rmtree(left, ignore_errors=True)  # (leaves links alone)
        _remove_link(folder / SAVING)
        if (folder / SAVING).is_dir():
            _remove_link(folder / SAVING / _OLD)
            (folder / SAVING / _OLD).mkdir(exist_ok=True)
            saved = _names(folder / SAVING)
            _move(folder, saved)
            _clear(folder, saved)
        part = Path(tempfile.mkdtemp(prefix=_PREFIX, suffix=_SUFFIX, dir=folder))
        stack.callback(shutil.rmtree, part, ignore_errors=True)
        yield part
        new = _names(part)
        (part / _OLD).mkdir()
        for path in (*part.rglob("*"), part):
            sync(path)
        part.rename(folder / SAVING)
        try:
            _move(folder, new)
        except BaseException:
            _move_back(folder, new)
            (folder / SAVING).rename(part)
            raise
        _clear(folder, new)


def _names(saved: Path) -> list[str]:
    return sorted(path.name for path in saved.iterdir() if path.name != _OLD)


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _remove_link(path: Path) -> None:
    """Removes what stands under a working name and is no folder."""
    if os.path.lexists(path) and not _is_folder(path):
        path.unlink()


def _move(folder: Path, names: Sequence[str]) -> None:
    """Moves saved files to their places; may be called again after an interruption at any point."""
    saved, old = folder / SAVING, folder / SAVING / _OLD
    sync(folder)
    for name in names:
        if os.path.lexists(saved / name):
            if os.path.lexists(folder / name):
                (folder / name).replace(old / name)
            (saved / name).replace(folder / name)
    sync(folder)


def _move_back(folder: Path, names: Sequence[str]) -> None:
    """Reverses :func:`_move`; the saved files stay the current ones until their folder is renamed."""
    saved, old = folder / SAVING, folder / SAVING / _OLD
    for name in reversed(names):
        if os.path.lexists(folder / name) and not os.path.lexists(saved / name):
            (folder / name).replace(saved / name)
        if os.path.lexists(old / name):
            (old / name).replace(folder / name)


def _clear(folder: Path, names: Sequence[str]) -> None:
    """Removes the replaced files once all new ones are in their places."""
    for name in names:
        _remove_empty(folder / name)
    shutil.rmtree(folder / SAVING, ignore_errors=True)


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Waits for other processes that write to the folder; the lock ends with the process."""
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
