"""Safetensors files written whole or not at all."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ._whole import write_whole


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Writes tensors as :func:`write_whole` does, with an OSError on a full disk, where safetensors raises its own."""
    try:
        write_whole(path, lambda partial: save_file(dict(tensors), partial, metadata))
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written: {error}") from error
