"""Logs that grow line by line."""

import json
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any


def append_jsonl(path: str | Path, entry: Mapping[str, Any] | Any) -> None:
    """Appends one line of JSON to a log; a callback for ``on_step`` of :func:`distil`."""
    if is_dataclass(entry) and not isinstance(entry, type):
        entry = asdict(entry)
    if not isinstance(entry, Mapping):
        raise TypeError(f"entry must be a mapping or a dataclass; found {type(entry).__name__}.")
    line = json.dumps(dict(entry), ensure_ascii=True)
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(line + "\n")  # one call, so that a kill leaves at most a torn last line
