"""JSON that anybody may have written, and dataclasses read from it by their annotations."""

import json
import types
from collections.abc import Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ._files import open_regular


def parse_json(content: bytes | str) -> Any:
    """Parses one JSON value; raises ValueError if it is none, or nested too deeply."""
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_json(path: Path, most: int | None = None) -> Any:
    """Reads one JSON value from a regular file of at most ``most`` bytes; raises OSError or ValueError."""
    with open_regular(path, most) as file:
        return parse_json(file.read())


def typed(kind: Any, value: Any, where: str = "content") -> Any:
    """Returns a value of a type: a dataclass from a mapping, a tuple from a list, the others as they are.

    Args:
        kind: A dataclass, ``tuple[X, ...]``, ``Mapping[K, V]``, ``Literal``, a union, a plain type or ``Any``.
        value: What JSON held.
        where: Its place, for messages.

    Raises:
        TypeError: If it does not fit.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if is_dataclass(kind) and isinstance(value, dict):
        hints = get_type_hints(kind)
        if unknown := sorted(value.keys() - hints.keys()):
            raise TypeError(f"{where} must have {', '.join(hints)} alone; found {str(unknown)[:60]}")
        return kind(**{name: typed(hints[name], entry, f"{where}.{name}") for name, entry in value.items()})  # type: ignore[operator]
    if origin in {Union, types.UnionType}:
        for choice in arguments:
            try:
                return typed(choice, value, where)
            except TypeError:
                continue
    elif origin is Literal and isinstance(value, str) and value in arguments:
        return value
    elif origin is tuple and isinstance(value, list):
        return tuple(typed(arguments[0], entry, f"{where}[{place}]") for place, entry in enumerate(value))
    elif origin in {Mapping, dict} and isinstance(value, dict):
        key, entry = arguments
        return {typed(key, name, where): typed(entry, own, f"{where}.{name}") for name, own in value.items()}
    elif isinstance(kind, type) and type(value) is kind:
        return value
    elif kind is float and type(value) is int:
        return float(value)
    expected = " or ".join(map(repr, arguments)) if origin is Literal else getattr(kind, "__name__", kind)
    raise TypeError(f"{where} must be {expected}; found {str(value)[:60]!r}")
