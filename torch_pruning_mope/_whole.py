"""Files written whole or not at all."""

import secrets
from pathlib import Path


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file beside its place and moves it there, so that others find the old or the new one, and never a part.

    Args:
        path: The file; replaced if it is there.
        content: What it holds; text in UTF-8.
    """
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")  # ranks may write the same file
    try:
        partial.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
