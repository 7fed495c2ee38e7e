"""JSON that anybody may have written, and logs with an object a line."""

import json
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
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


def append_jsonl(path: str | Path, entry: Mapping[str, Any] | Any) -> None:
    """Appends one line of JSON to a log; a callback for ``on_step`` of :func:`distil`."""
    if is_dataclass(entry) and not isinstance(entry, type):
        entry = asdict(entry)
    if not isinstance(entry, Mapping):
        raise TypeError(f"entry must be a mapping or a dataclass; found {type(entry).__name__}.")
    line = json.dumps(dict(entry), ensure_ascii=True)
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(line + "\n")  # one call, so that a kill leaves at most a torn last line
