"""``config.json`` of a checkpoint, and its files: read from nowhere but its folder, and never code."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as short
from typing import Any, Literal

from .._io import OutsideError, holds, is_plain, located, open_regular, read_json, resolve_inside, sha256_of, typed
from ..errors import ModelLoadError
from . import _base
from ._base import BASE, Base
from ._spec import Spec, check_spec

FORMAT, VERSION = "torch-pruning-mope", 2
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
_MOST_BYTES = 2**22
_DATA = (".jinja", ".json", ".model", ".txt")
"""Suffixes of what tokenizers and processors save; a name of any other may be code."""
_MOST_FILES = 32


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
        return holds(inside(folder, CONFIG), f'"{FORMAT}"', _MOST_BYTES)
    except ModelLoadError:
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


def inside(folder: Path, name: str) -> Path:
    """Returns a regular file of a checkpoint, with links resolved."""
    try:
        path = resolve_inside(folder, located(folder, name).relative_to(folder))
        open_regular(path).close()
    except OutsideError as error:
        raise ModelLoadError(
            f"{name} must lie inside of the checkpoint's folder; found a link out of {folder}."
        ) from error
    except (OSError, RuntimeError) as error:
        raise ModelLoadError(f"a checkpoint must hold {name}; found none that can be read in {folder}.") from error
    return path


def base_files(folder: Path, digests: Mapping[str, str]) -> dict[str, bytes | Path]:
    """Checks the files in the folder of the base, which tokenizers look through."""
    base = located(folder, BASE)
    there = {path.name for path in base.iterdir()} if base.is_dir() else set()
    names = {name.removeprefix(f"{BASE}/") for name in digests if name != WEIGHTS}
    if bad := sorted(name for name in there | names if not (is_plain(name) and name.endswith(_DATA))):
        raise ModelLoadError(f"{BASE} must hold files of {', '.join(_DATA)} alone; found {short(bad[0])}.")
    if there != names or len(names) > _MOST_FILES:
        raise ModelLoadError(
            f"{BASE} must hold the files that {CONFIG} lists and no others; found {sorted(there ^ names)[:8]} too many or "
            "missing."
        )
    for name in names:
        check_digest(folder, f"{BASE}/{name}", digests)
    return dict.fromkeys(names, folder)


def check_digest(folder: Path, name: str, digests: Mapping[str, str]) -> Path:
    """Checks all bytes of a file."""
    path = inside(folder, name)
    if sha256_of(path) != digests[name]:
        raise ModelLoadError(f"{name} must be as it was written; found another SHA-256: it is damaged. Get it again.")
    return path
