"""Paths in a run's files: relative to its folder where they are near it, so that both may move together."""

import os
import re
from pathlib import Path

_UP = 2
"""Levels above the run's folder that still count as near: ``project/runs/a`` is near ``project/pairs.csv``."""
_FOLDER_PREFIX = re.compile(r"(hf|local-dir|mope):(?!//)")
_PATTERN = re.compile(r"[*?\[{]")


def beside(value: str, folder: Path) -> str:
    """A name or a path as the files of a run hold it: ``./`` or ``../`` begins what is relative to the folder."""
    before, path = _split(value)
    if not path:
        return value
    target, base = Path(path).expanduser().absolute(), folder.absolute()
    relative = os.path.relpath(target, base)
    if not relative.startswith(".."):
        return before + f"./{relative}"
    return before + (relative if Path(relative).parts.count("..") <= _UP else str(target))


def found_from(value: str, folder: Path) -> str:
    """The reverse: what a file in the folder says, as a command takes it."""
    before, path = _split(value, exists=False)
    if not path.startswith(("./", "../")):
        return value
    return before + os.path.normpath(folder.absolute() / path)


def shown(value: str) -> str:
    """A model's or data set's name for results and pages: of a path the last part alone."""
    before, path = _split(value, exists=False)
    return before + Path(path).name if Path(path).is_absolute() or path.startswith((".", "~")) else value


def _split(value: str, *, exists: bool = True) -> tuple[str, str]:
    """Splits a value into prefix and path; the path is empty if there is none."""
    prefix = _FOLDER_PREFIX.match(value)
    before = prefix[0] if prefix else ""
    if not prefix and "@" in value and not Path(value).exists():
        before = f"{value.partition('@')[0]}@"
    path = value[len(before) :]
    if not exists:
        return before, path
    pattern = _PATTERN.search(path)
    there = Path(path[: pattern.start()]).parent if pattern else Path(path)
    is_path = bool(path) and there.expanduser().exists() and (bool(before) or not _is_name(path))
    return before, path if is_path else ""


def _is_name(text: str) -> bool:
    """True if a text is read as a name, although a file may be called so."""
    if text in {"tiny", "emoji"} or ":" in text:
        return True
    import open_clip  # which is slow to import; here it has been

    return text.replace("/", "-") in open_clip.list_models()
