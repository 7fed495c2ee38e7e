"""Safetensors files written whole or not at all."""

import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Writes a file beside its place, has the disk hold it, and renames it, so that a reader finds the old or the new file.

    Raises:
        OSError: If it cannot be written, as on a full disk; the old file is untouched.
    """
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")  # several processes may write the same file
    try:
        save_file(dict(tensors), partial, metadata)
        sync(partial)
        partial.replace(path)
        sync(path.parent)
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written: {error}") from error
    finally:
        partial.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Has the disk hold a file, or the entries of a folder, before what comes next, in case the power fails."""
    with suppress(OSError):  # some systems cannot open folders
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
