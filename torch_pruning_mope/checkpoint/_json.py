"""JSON that is written one way only and read without trust: no duplicate keys, no NaN, nothing huge, nothing deep."""

import hashlib
import json
import math
import re
from typing import Any, NoReturn

from ..errors import ModelLoadError

MOST_BYTES = 64 * 2**20
"""Of one JSON file."""
_DEEPEST = 24
_LARGEST = 2**53
"""Beyond that, readers of JSON disagree on integers."""
_ROW = re.compile(r"\[\s+([^\[\]{}\"]*?)\s+\]")
_CHECKSUM = "checksum"


def dump(content: Any) -> bytes:
    """Content as JSON for people to read: keys in order, lists of numbers on one line."""
    text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return (_ROW.sub(lambda row: f"[{' '.join(row[1].split())}]", text) + "\n").encode()


def digest(content: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def seal(content: dict[str, Any]) -> bytes:
    """A file of JSON that holds its own checksum."""
    return dump({**content, _CHECKSUM: digest(dump(content))})


def unseal(data: bytes, name: str) -> dict[str, Any]:
    """What :func:`seal` was given.

    Args:
        data: The file.
        name: Its name, for messages.

    Returns:
        The content.

    Raises:
        ModelLoadError: If a bit of the file is another.
    """
    content = parse(data, name)
    found = content.pop(_CHECKSUM, None)
    if found != digest(dump(content)) or data.replace(b"\r\n", b"\n") != seal(content):
        raise ModelLoadError(
            f"{name} must be as it was written, found another checksum: it was damaged or edited. Get it again, or save again."
        )
    return content


def parse(data: bytes, name: str) -> dict[str, Any]:
    """An object of JSON from a file that anybody may have written.

    Args:
        data: The file.
        name: Its name, for messages.

    Returns:
        The object.

    Raises:
        ModelLoadError: If it is no such object, or not one that this package writes.
    """
    if len(data) > MOST_BYTES:
        raise ModelLoadError(f"{name} must have at most {MOST_BYTES} bytes, found {len(data)}.")
    try:
        found = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
            parse_float=_finite,
            parse_int=_small,
        )
    except RecursionError:
        raise ModelLoadError(f"{name} must be nested at most {_DEEPEST} deep, found more.") from None
    except ValueError as error:  # of Unicode and JSON too
        raise ModelLoadError(f"{name} must be JSON as this package writes it, found: {error}.") from error
    if not isinstance(found, dict):
        raise ModelLoadError(f"{name} must hold an object, found {type(found).__name__}.")
    level: list[Any] = [found]
    depth = 0
    while level:
        if (depth := depth + 1) > _DEEPEST:
            raise ModelLoadError(f"{name} must be nested at most {_DEEPEST} deep, found more.")
        inner = [value for item in level for value in (item.values() if isinstance(item, dict) else item)]
        level = [value for value in inner if isinstance(value, dict | list)]
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key that stands twice in one object")
    return found


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text}, which is no number")


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"a number too large ({text[:20]})")
    return number


def _small(text: str) -> int:
    if len(text) > 20 or abs(number := int(text)) > _LARGEST:
        raise ValueError(f"a number too large ({text[:20]})")
    return number
