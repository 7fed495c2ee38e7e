"""Digests by which results are kept: of models, of tensors, and of the objects that numbers depend on."""

import hashlib
import zlib
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of a model's state in hexadecimal, the same on every device."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype};".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def checksum(tensor: Tensor) -> int:
    """CRC-32 of a tensor's contents; several times as fast as a fingerprint."""
    return zlib.crc32(_bytes(tensor))


def key_of(value: object, *, known: tuple[type, ...] = ()) -> str:
    """A text that is the same for equal values, and differs where they do."""
    # An object's own ``key`` attribute comes first. Tensors and arrays count by their contents, modules by their state,
    # objects of the ``known`` types and those that cannot be called by their type and attributes.
    key = getattr(value, "key", None)
    if isinstance(key, str) and not isinstance(value, type):
        return f"key {key!r}"  # wherever the type was imported from
    if value is None or isinstance(value, bool | int | float | str | bytes | PurePath | torch.dtype | torch.device):
        return repr(value)
    if isinstance(value, Tensor | np.ndarray | np.generic):
        tensor = torch.as_tensor(value)
        return f"tensor[{tensor.dtype} {list(tensor.shape)} {hashlib.sha256(_bytes(tensor)).hexdigest()[:16]}]"
    if isinstance(value, type):
        return _name(value)
    if isinstance(value, Mapping):
        pairs = sorted((key_of(k, known=known), key_of(v, known=known)) for k, v in value.items())
        return "{" + ", ".join(f"{k}: {v}" for k, v in pairs) + "}"
    if isinstance(value, Sequence | set | frozenset):
        parts = [key_of(part, known=known) for part in value]
        return f"{type(value).__name__}({', '.join(parts if isinstance(value, Sequence) else sorted(parts))})"
    if isinstance(value, nn.Module):
        return f"{_name(type(value))}[{value!r} {fingerprint(value)[:16]}]"
    return _of_attributes(value, known)


def _of_attributes(value: object, known: tuple[type, ...]) -> str:
    attributes: dict[str, Any] | None = getattr(value, "__dict__", None)
    if attributes is None or (callable(value) and not isinstance(value, known)):
        raise ValueError(
            f"{getattr(value, '__qualname__', _name(type(value)))} must have a `key` attribute, a text that changes with what "
            "it computes; found none, so its results cannot be told from those of others."
        )
    inside = ", ".join(f"{name}={key_of(part, known=known)}" for name, part in sorted(attributes.items()))
    return f"{_name(type(value))}({inside})"


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _bytes(tensor: Tensor) -> memoryview:
    """A view of a tensor's memory; a copy would be seen in the memory that scoring takes."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data
