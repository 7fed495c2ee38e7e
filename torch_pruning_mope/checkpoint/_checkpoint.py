"""A checkpoint's configuration: what there was, what is left, and which bytes its files have."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._io import located
from ..errors import ModelLoadError
from . import _base
from ._base import Base
from ._files import BASE, CONFIG, WEIGHTS, checked, inside
from ._json import MOST_BYTES, parse, unseal
from ._manifest import Tensors, read_files, read_heads, read_tensors
from ._shrink import Shapes
from ._spec import Spec
from ._spec_json import from_json

FORMAT, VERSION = "torch-pruning-mope", 1
_FIELDS = {
    "format",
    "format_version",
    "versions",
    "base",
    "towers",
    "embedding",
    "tensors",
    "buffers",
    "heads_left",
    "files",
}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose configuration has been read.

    Attributes:
        folder: Where it is.
        base: What the model was before pruning.
        spec: What is left of it.
        tensors: Type and shape of each tensor.
        buffers: Type and shape of the buffers of floating point that are not among the tensors.
        heads_left: Of value projections that know their heads, which of the base's they are.
        summary: What goes in, and how many parameters there are.
    """

    folder: Path
    base: Base
    spec: Spec
    tensors: Tensors
    buffers: Tensors
    heads_left: dict[str, list[int]]
    summary: Any

    @property
    def shapes(self) -> Shapes:
        """Shape of each tensor."""
        return {name: shape for name, (_, shape) in self.tensors.items()}


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder looks like a checkpoint of this package, whole or damaged."""
    try:
        with located(folder, CONFIG).open("rb") as file:
            return f'"{FORMAT}"'.encode() in file.read(MOST_BYTES)
    except OSError:
        return False


@contextmanager
def open_checkpoint(folder: Path) -> Iterator[Checkpoint]:
    """A checkpoint, whose weights are looked at byte by byte while the caller does something else.

    Args:
        folder: Where it is.

    Yields:
        The checkpoint. Leaving the context waits for the look at the weights.

    Raises:
        ModelLoadError: If it is none, damaged, or of another version.
    """
    content = _content(folder)
    files = read_files(content["files"])
    for name, (size, sha256) in files.items():
        if name != WEIGHTS:
            checked(inside(folder, name), name, size, sha256)
    checkpoint = Checkpoint(
        folder,
        Base(_base.check(content["base"]), _base_files(folder, files)),
        from_json(content["towers"]),
        read_tensors(content["tensors"]),
        read_tensors(content["buffers"]),
        read_heads(content["heads_left"]),
        content["embedding"],
    )
    with ThreadPoolExecutor(1) as pool:  # hashing leaves the interpreter to others
        looked = pool.submit(checked, inside(folder, WEIGHTS), WEIGHTS, *files[WEIGHTS])
        yield checkpoint
        looked.result()


def _content(folder: Path) -> dict[str, Any]:
    """The configuration.

    Returns:
        What it holds.

    Raises:
        ModelLoadError: If it is none, damaged, or of another version.
    """
    path = inside(folder, CONFIG)
    if path.stat().st_size > MOST_BYTES:
        raise ModelLoadError(f"{CONFIG} must have at most {MOST_BYTES} bytes, found {path.stat().st_size}.")
    data = path.read_bytes()
    content = parse(data, CONFIG)
    if content.get("format") != FORMAT:
        raise ModelLoadError(
            f"{CONFIG} must be of a checkpoint of {FORMAT}, found format {content.get('format')!r:.80}."
        )
    version = content.get("format_version")
    if type(version) is not int or version != VERSION:
        raise ModelLoadError(
            f"{CONFIG} must be of format version {VERSION}, found {version!r:.80}. Another version of torch-pruning-mope may "
            "read it."
        )
    content = unseal(data, CONFIG)
    versions = content.get("versions")
    if not isinstance(versions, dict) or not all(
        isinstance(text, str) for text in (versions.get(FORMAT), *versions.values())
    ):
        raise ModelLoadError(f"versions must be texts, that of {FORMAT} among them, found {versions!r:.80}.")
    if set(content) != _FIELDS:
        raise ModelLoadError(f"{CONFIG} must have the fields {sorted(_FIELDS)}, found {sorted(content)[:20]}.")
    return content


def _base_files(folder: Path, files: dict[str, Any]) -> dict[str, bytes | Path]:
    """What belongs to the base; nothing else may lie there, since tokenizers read what they find.

    Returns:
        The checkpoint, by name of each file.

    Raises:
        ModelLoadError: If there is something else, or something is missing.
    """
    names = {name.rpartition("/")[2] for name in files if name != WEIGHTS}
    base = located(folder, BASE)
    there = {path.name for path in base.iterdir()} if base.is_dir() else set()
    if there != names:
        raise ModelLoadError(
            f"{BASE} must hold the files that {CONFIG} lists and no others, found {sorted(there ^ names)[:8]} too many or "
            "missing."
        )
    return dict.fromkeys(names, folder)
