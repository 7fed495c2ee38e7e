"""What a checkpoint says of its tensors and files, read without trust."""

import re
from typing import Any

import torch

from ..errors import ModelLoadError
from ._files import BASE, WEIGHTS, is_plain

DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, name)
    for name in ("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
}
Tensors = dict[str, tuple[torch.dtype, tuple[int, ...]]]
_TENSOR = re.compile(r"([a-z0-9]+)((?: \d{1,12}){0,8})", re.ASCII)


def read_files(content: Any) -> dict[str, tuple[Any, Any]]:
    """Sizes and digests of files.

    Args:
        content: Parsed JSON.

    Returns:
        Both, by name; the name is of a file that can lie in a checkpoint.

    Raises:
        ModelLoadError: If a file cannot, or there are no weights.
    """
    found = {}
    for name, entry in (content if isinstance(content, dict) else {}).items():
        folder, _, rest = name.rpartition("/")
        good = isinstance(entry, dict) and set(entry) == {"bytes", "sha256"}
        if not good or (name != WEIGHTS and not (folder == BASE and is_plain(rest))):
            raise ModelLoadError(
                f"files must be {WEIGHTS} and some in {BASE}, with bytes and sha256; found {name[:80]!r}."
            )
        found[name] = (entry["bytes"], entry["sha256"])
    if WEIGHTS not in found:
        raise ModelLoadError(f"files must name {WEIGHTS}, found {sorted(found)[:8]}.")
    return found


def write_tensor(dtype: torch.dtype, shape: tuple[int, ...]) -> str:
    """Type and shape as one text.

    Args:
        dtype: The type.
        shape: The shape.

    Returns:
        ``float32 512 768``.

    Raises:
        ValueError: If safetensors of this package do not hold such a type.
    """
    names = {known: name for name, known in DTYPES.items()}
    if dtype not in names:
        raise ValueError(f"model must have tensors of types {', '.join(DTYPES)}; found {dtype}. Convert it.")
    return " ".join([names[dtype], *map(str, shape)])


def read_tensors(content: Any) -> Tensors:
    """Types and shapes of tensors.

    Args:
        content: Parsed JSON.

    Returns:
        Both, by name.

    Raises:
        ModelLoadError: If it is something else.
    """
    if not isinstance(content, dict):
        raise ModelLoadError(f"tensors and buffers must be objects, found {content!r:.80}.")
    found: Tensors = {}
    for name, entry in content.items():
        match = _TENSOR.fullmatch(entry) if isinstance(entry, str) else None
        if match is None or match[1] not in DTYPES:
            raise ModelLoadError(f"tensors must each be a type and a shape, found {entry!r:.80} for {name!r:.80}.")
        found[name] = (DTYPES[match[1]], tuple(map(int, match[2].split())))
    return found


def read_heads(content: Any) -> dict[str, list[int]]:
    """Which heads of the base are left, for value projections that know theirs.

    Args:
        content: Parsed JSON.

    Returns:
        The heads, by name of the projection.

    Raises:
        ModelLoadError: If it is something else.
    """
    if not isinstance(content, dict) or not all(_is_rising(heads) for heads in content.values()):
        raise ModelLoadError(f"heads_left must be an object of lists of heads in order, found {content!r:.80}.")
    return dict(content)


def _is_rising(heads: Any) -> bool:
    if not isinstance(heads, list) or not all(type(head) is int and 0 <= head < 2**24 for head in heads):
        return False
    return sorted(set(heads)) == heads
