"""``config.json`` of a checkpoint: what the model was, and which layers, heads, neurons and channels are left."""

from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as short
from typing import Any, Literal

from .._io import open_regular, read_json, typed
from ..errors import ModelLoadError
from . import _base
from ._base import Base
from ._files import CONFIG, WEIGHTS, base_files, inside
from ._spec import Spec, check_spec

FORMAT, VERSION = "torch-pruning-mope", 2
_MOST_BYTES = 2**22


@dataclass(frozen=True)
class Config:
    """The content of the file.

    Attributes:
        format: Name of the format.
        format_version: Its version.
        versions: Versions of the libraries that wrote it, for people.
        base: Description of the model before pruning.
        towers: Layers, heads, neurons and channels that are left.
        heads_left: Heads of the base that are left, by name of the value projection that records them.
        buffers: Types of the buffers that are not among the weights and not float32, by name.
        sha256: SHA-256 of the weights and of the base's files, by path in the folder.
    """

    format: str
    format_version: int
    versions: Any
    base: dict[str, Any]
    towers: Spec
    heads_left: dict[str, str]
    buffers: dict[str, Literal["bfloat16", "float16", "float32", "float64"]]
    sha256: dict[str, str]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose configuration has been read."""

    folder: Path
    base: Base
    config: Config


def is_checkpoint(folder: Path) -> bool:
    """Returns True for a folder that looks like a checkpoint of this package, whole or damaged."""
    try:
        with open_regular(inside(folder, CONFIG), _MOST_BYTES) as file:
            return f'"{FORMAT}"'.encode() in file.read()
    except (ModelLoadError, OSError):
        return False


def read_checkpoint(folder: Path) -> Checkpoint:
    """Reads the configuration and checks the files of the base, but not the weights."""
    try:
        content = read_json(inside(folder, CONFIG), _MOST_BYTES)
    except ModelLoadError:
        raise
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{CONFIG} must be JSON of at most {_MOST_BYTES} bytes; found: {error}.") from error
    found = content.get("format") if isinstance(content, dict) else content
    if found != FORMAT:
        raise ModelLoadError(f"{CONFIG} must be of a checkpoint of {FORMAT}; found format {short(found)}.")
    version = content.get("format_version")
    if type(version) is not int or version != VERSION:
        raise ModelLoadError(
            f"{CONFIG} must be of format version {VERSION}; found {short(version)}. Save it again with this version, or "
            "install the one that wrote it."
        )
    try:
        config: Config = typed(Config, content, CONFIG)
    except TypeError as error:
        raise ModelLoadError(f"{CONFIG} must be as save_pretrained writes it; found: {error}.") from error
    if WEIGHTS not in config.sha256:
        raise ModelLoadError(f"sha256 must name {WEIGHTS}; found {short(sorted(config.sha256))}.")
    check_spec(config.towers)
    _base.check(config.base)
    return Checkpoint(folder, Base(config.base, base_files(folder, config.sha256)), config)
