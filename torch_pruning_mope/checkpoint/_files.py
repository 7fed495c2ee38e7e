"""Files of a checkpoint: read from nowhere but its folder, and never code."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from reprlib import repr as short

from .._io import OutsideError, located, open_regular, resolve_inside
from ..errors import ModelLoadError

CONFIG, WEIGHTS, CARD, BASE = "config.json", "model.safetensors", "README.md", "base"
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,99}")
_DATA = (".jinja", ".json", ".model", ".txt")
"""Suffixes of what tokenizers and processors save; a name of any other may be code."""
_MOST_FILES = 32


def is_plain(name: str) -> bool:
    """Returns True for a name that can only be of a file in the folder that it is joined to."""
    return _PLAIN.fullmatch(name) is not None


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


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
