"""Bounds on what a configuration may ask for, so that building it takes neither hours nor all memory."""

import re
from collections.abc import Iterator
from typing import Any

from ..errors import ModelLoadError

_LIMITS = (
    (re.compile(r"layers|depth|blocks|stages"), 512),
    (re.compile(r"context|position|tokens|queries"), 2**15),
    (re.compile(r"size|width|dim|ratio|heads"), 2**18),
)
_MOST = 2**21
_UNSAFE = re.compile(r"^[a-z\-]+:|://|^[/~.]|\\|\.\.")


def check_limits(config: Any, where: str) -> None:
    """Looks at all numbers and texts of a configuration.

    Args:
        config: Parsed JSON.
        where: What it is, for messages.

    Raises:
        ModelLoadError: If a number is beyond any model's, or a text is a path or an address.
    """
    for name, value in _leaves(config, ""):
        if isinstance(value, str) and _UNSAFE.search(value):
            raise ModelLoadError(f"{where}{name} must be no path or address, found {value[:80]!r}.")
        if isinstance(value, int | float) and not isinstance(value, bool):
            most = next((most for pattern, most in _LIMITS if pattern.search(name)), _MOST)
            if abs(value) > most:
                raise ModelLoadError(f"{where}{name} must be at most {most}, found {value}.")


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{name}.{key}")
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner, name)
    else:
        yield name, value
