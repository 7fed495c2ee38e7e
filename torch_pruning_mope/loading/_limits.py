"""Bounds on configurations of unknown origin, so that building a model takes neither hours nor all memory."""

import re
from collections.abc import Iterator
from reprlib import repr as short
from typing import Any

from ..errors import ModelLoadError

_LAYERS, _MOST_LAYERS = re.compile(r"layers|depth|blocks|stages"), 128
_CONTEXT, _MOST_CONTEXT = re.compile(r"context_length"), 4096
"""open_clip makes a mask of its square."""
_MOST = 2**24
_MOST_ITEMS = 10_000
_UNSAFE = re.compile(r"^[a-z\-]+:|://|^[/~.]|\\|\.\.")


def check_limits(config: Any, where: str) -> None:
    """Checks all numbers and texts of a configuration."""
    layers = 0
    for count, (name, value) in enumerate(_leaves(config, where)):
        if count > _MOST_ITEMS:
            raise ModelLoadError(f"{where} must have at most {_MOST_ITEMS} entries; found more.")
        if isinstance(value, str) and _UNSAFE.search(value):
            raise ModelLoadError(f"{name} must be no path or address; found {value[:80]!r}.")
        if not isinstance(value, int | float) or isinstance(value, bool):
            continue
        if not (isinstance(value, float) and abs(value) < float("inf")) and not -_MOST <= value <= _MOST:
            raise ModelLoadError(f"{name} must be at most {_MOST}; found {short(value)}.")
        if _CONTEXT.search(name) and value > _MOST_CONTEXT:
            raise ModelLoadError(f"{name} must be at most {_MOST_CONTEXT}; found {short(value)}.")
        if _LAYERS.search(name.rpartition(".")[2]):
            layers += abs(int(value))
            if layers > 4 * _MOST_LAYERS or abs(value) > _MOST_LAYERS:
                raise ModelLoadError(f"{name} must be at most {_MOST_LAYERS}; found {short(value)}.")


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{name}.{key}")
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner, name)
    else:
        yield name, value
