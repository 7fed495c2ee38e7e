"""JSON that anybody may have written."""

import json
from pathlib import Path
from typing import Any

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
