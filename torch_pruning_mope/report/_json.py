"""JSON files that may be damaged."""

import json
from pathlib import Path
from typing import Any


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Args:
        path: The file.

    Returns:
        Its content.

    Raises:
        ValueError: If it is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} must be JSON; found otherwise: {error}. Write it again, or delete it.") from error


def read_jsonl(path: Path) -> list[Any]:
    """What a log of one JSON value per line holds.

    Args:
        path: The file.

    Returns:
        The values. A last line that a killed process has torn off is left out.

    Raises:
        ValueError: If any other line is not JSON.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be text in UTF-8; found otherwise: {error}. Delete it.") from error
    lines = text.split("\n")
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            found.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            if number == len(lines):
                break
            raise ValueError(
                f"{path}, line {number} must be JSON; found otherwise: {error}. Delete the line."
            ) from error
    return found
