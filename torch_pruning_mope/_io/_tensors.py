"""Files of safetensors."""

import errno
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ._files import open_regular
from ._folder import write_whole

_MOST_HEADER = 2**23


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Writes tensors, which may share memory, as :func:`write_whole` does."""
    try:
        write_whole(path, lambda partial: save_file(_apart(tensors), partial, metadata))
    except SafetensorError as error:
        raise OSError(errno.EIO, f"cannot be written: {error}", str(path)) from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Reads all tensors of a file."""
    _check_header(path)
    try:
        found: dict[str, Tensor] = load_file(path)
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"{path.name} must be a file of safetensors; found: {str(error)[:300]}") from error
    return found


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Reads the shapes in the header of a file, which is checked against its length."""
    _check_header(path)
    try:
        with safe_open(path, "pt") as file:
            opened: Any = file
            return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"{path.name} must be a file of safetensors; found: {str(error)[:300]}") from error


def _check_header(path: Path) -> None:
    """Refuses a header that takes long to parse, and files that are no regular ones."""
    with open_regular(path) as file:
        length = int.from_bytes(file.read(8), "little")
    if length > _MOST_HEADER:
        raise ValueError(f"{path.name} must be a file of safetensors; found a header of {length} bytes.")


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that share no memory, as the format wants them."""
    seen: set[int] = set()
    apart: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone() if place in seen and place else tensor.contiguous()
        seen.add(place)
    return apart
