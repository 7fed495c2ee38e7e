"""Settings of a run as YAML: what each command was given, so that a file reproduces a run."""

import platform
from collections.abc import Mapping
from enum import Enum
from importlib import metadata
from pathlib import Path
from typing import Any

import typer
import yaml

from .._io import write_whole
from .._version import __version__

FILE = "config.yaml"
NOT_SETTINGS = frozenset({"run", "config", "json", "quiet", "estimate", "help"})
"""What is no matter of the result."""
LIBRARIES = ("torch", "torch-pruning", "open_clip_torch", "timm", "transformers")


def read_config(path: Path) -> dict[str, dict[str, Any]]:
    """Reads settings by command.

    Args:
        path: A YAML file, or the folder of a run.

    Returns:
        A mapping of settings per command; empty if the folder has none yet.

    Raises:
        ValueError: If the file holds something else.
    """
    file = path / FILE if path.is_dir() else path
    if path.is_dir() and not file.exists():
        return {}
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"config must be a YAML file; {file} is not: {error}") from error
    if not isinstance(found, Mapping) or any(not isinstance(section, Mapping) for section in found.values()):
        raise ValueError(
            f"config must map commands to their settings, as in 'score: {{model: tiny}}'; {file} does not."
        )
    return {str(name): dict(section) for name, section in found.items()}


def record(folder: Path, command: str, given: Mapping[str, Any]) -> None:
    """Writes a command's settings, by flags, file or default, into the run's file; those of other commands stay.

    Args:
        folder: The run's folder; made if need be.
        command: The command.
        given: Its arguments.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = {"versions": _versions(), **read_config(folder)}
    content.pop(command, None)  # a command that is run again moves to the end: the order is that of the run
    settings = {name: value for name, value in given.items() if name not in NOT_SETTINGS}
    content[command] = {name: _plain(value) for name, value in settings.items() if value not in (None, [], ())}
    write_whole(folder / FILE, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


def from_config(context: Any, path: Path | None) -> Path | None:
    """Takes the command's defaults from a file; a callback of ``--config``.

    Args:
        context: Click's, of the command; not of a type that all versions of Typer have.
        path: The file, or a run's folder.

    Returns:
        The same.

    Raises:
        BadParameter: If the file has settings that the command has not, or cannot be read.
    """
    if path is None:
        return None
    command = str(context.info_name)
    try:
        section = read_config(path).get(command, {})
    except (OSError, ValueError) as error:
        raise typer.BadParameter(str(error)) from error
    settings = {key.replace("-", "_"): value for key, value in section.items()}
    known = {str(parameter.name) for parameter in context.command.params} - NOT_SETTINGS
    unknown = sorted(settings.keys() - known)
    if unknown:
        raise typer.BadParameter(
            f"{path} must hold settings of 'mope {command}' under '{command}'; found {', '.join(unknown)}, which it has not. "
            f"It has {', '.join(sorted(known))}."
        )
    context.default_map = settings
    return path


def _plain(value: Any) -> Any:
    """A value as YAML holds it."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value


def _versions() -> dict[str, str]:
    found = {"torch-pruning-mope": __version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
