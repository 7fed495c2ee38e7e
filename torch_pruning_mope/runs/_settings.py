"""A run's ``config.yaml``: the settings of each command, and paths that survive a move of the folder."""

import os
import platform
import re
from collections.abc import Mapping
from enum import Enum
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from .._version import __version__

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


LIBRARIES = ("torch", "torch-pruning", "open_clip_torch", "timm", "transformers")
NEVER_IN_FILES = frozenset({"run", "config", "json", "quiet", "estimate", "force", "allow_commands", "follow_links"})
"""Options without influence on the result, and those that open doors: given on the command line alone."""
_PATHS = frozenset({"data", "root", "model", "classnames"})
_ALIASES = {"distil": "distill"}
_LONGEST = 1 << 20


def read_settings(file: Path) -> dict[str, dict[str, Any]]:
    """Reads settings by command. Values that begin with ``./`` or ``../`` are paths relative to the file."""
    try:
        with file.open("rb") as opened:
            text = opened.read(_LONGEST + 1)
        if len(text) > _LONGEST:
            raise ValueError(f"it is longer than {_LONGEST} bytes")
        content = yaml.safe_load(text.decode("utf-8")) or {}
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"config must be a YAML file; {file} is not: {error}") from error
    if not isinstance(content, Mapping) or any(not isinstance(section, Mapping) for section in content.values()):
        raise ValueError(
            f"config must map commands to their settings, as in 'score: {{model: tiny}}'; {file} does not."
        )
    return {_ALIASES.get(str(name), str(name)): _read(section, file.parent) for name, section in content.items()}


def settings_text(file: Path, before: Mapping[str, Any], command: str, given: Mapping[str, Any]) -> str:
    """The file's new text: a command's settings, whatever they come from, after those of other commands."""
    content = {name: dict(section) for name, section in before.items()} | {"versions": _versions()}
    content = {"versions": content.pop("versions"), **content}
    content.pop(command, None)  # a command that is run again moves to the end: the order is that of the run
    content[command] = {
        name: value
        for name, value in given.items()
        if name not in NEVER_IN_FILES and value not in (None, [], ()) and _stays(name, value, file.parent)
    }
    written = {
        name: {key: _plain(key, value, file.parent) for key, value in section.items()}
        for name, section in content.items()
    }
    text: str = yaml.safe_dump(written, sort_keys=False, allow_unicode=True)
    return text


def _stays(name: str, value: Any, folder: Path) -> bool:
    """True if a file may hold the setting: a place to write to only within the folder."""
    return name != "output" or Path(value).resolve().is_relative_to(folder.resolve())


def _read(section: Mapping[Any, Any], folder: Path) -> dict[str, Any]:
    settings = {str(key).replace("-", "_"): value for key, value in section.items()}
    return {
        key: found_from(value, folder) if key in _PATHS and isinstance(value, str) else value
        for key, value in settings.items()
    }


def _plain(name: str, value: Any, folder: Path) -> Any:
    """A value as YAML holds it; paths as seen from the file."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, list | tuple):
        return [_plain(name, part, folder) for part in value]
    if name == "output" and isinstance(value, Path):
        return str(value.resolve().relative_to(folder.resolve()))
    if isinstance(value, Path):
        value = str(value)
    return beside(value, folder) if name in _PATHS and isinstance(value, str) else value


def _versions() -> dict[str, str]:
    found = {"torch-pruning-mope": __version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
