"""From patterns, folders and URLs to shards."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from .._io import open_regular, printable, resolve_inside
from .._io._urls import check_url, is_url
from ..errors import DataError
from ._skipped import Problem

SHARD_SUFFIXES = (".tar", ".tar.gz", ".tgz")


def webdataset() -> Any:
    """Returns the library, or raises DataError if it is not installed."""
    try:
        import webdataset as library  # optional
    except ImportError as error:
        raise DataError(
            "shards need webdataset; found it missing. pip install torch-pruning-mope[webdataset]"
        ) from error
    return library


def is_shards(source: str | Path) -> bool:
    """Returns whether this is a URL, several, or a path or pattern of tar files."""
    urls = isinstance(source, str) and (is_url(source) or "::" in source)
    return urls or str(source).endswith(SHARD_SUFFIXES)


def tar_files(folder: Path) -> list[Path]:
    """Returns the tar files of a folder, in alphabetical order; none if it is no folder."""
    if not os.path.isdir(folder):  # noqa: PTH112  (is_dir raises for names that are too long)
        return []
    return sorted(path for path in folder.iterdir() if path.name.endswith(SHARD_SUFFIXES))


def expand_shards(
    source: str | Path | Sequence[str | Path], *, allow_commands: bool = False, follow_links: bool = False
) -> tuple[list[str], list[Problem]]:
    """Returns shards, and those taken out because they are missing, empty or elsewhere."""
    # URLs stay as they are, files become absolute paths: what was found on disk is never read as a URL again.
    webdataset()
    shards: list[str] = []
    problems: list[Problem] = []
    for pattern in [source] if isinstance(source, str | Path) else source:
        for item in _expand(pattern):
            if isinstance(item, str):
                shards.append(_checked(item, allow_commands))
                continue
            for path, folder in _local(item):
                problem = _problem(path, folder, follow_links)
                problems += [problem] if problem else []
                shards += [] if problem else [str(path)]
    if not shards:
        first = (
            f"{len(problems)} that cannot be used (first: {printable(problems[0].where)})"
            if problems
            else f"{source!r}"
        )
        raise DataError(f"source must be at least one shard with samples; found {first}. Pass paths, patterns or URLs.")
    return shards, problems


def _expand(pattern: str | Path) -> list[str | Path]:
    """Returns the URLs and paths that a pattern of braces stands for; a file or folder of its very name comes first."""
    plain = isinstance(pattern, Path) or not (is_url(pattern) or "::" in pattern)
    if plain and os.path.exists(os.path.expanduser(pattern)):  # noqa: PTH110, PTH111  (never raise)
        return [Path(pattern).expanduser()]
    try:
        texts = webdataset().shardlists.expand_urls(str(pattern))
    except (AssertionError, ValueError) as error:  # a variable that is not set, an unbalanced brace
        raise DataError(f"source must be a pattern of shards; found {str(pattern)!r}: {error}.") from error
    found: list[str | Path] = []
    for text in texts:
        if isinstance(pattern, Path) or not is_url(text):
            found.append(Path(text).expanduser())
        elif text.lower().startswith("file:"):
            found.append(Path(url2pathname(urlsplit(text).path)))
        else:
            found.append(text)
    return found


def _local(path: Path) -> list[tuple[Path, Path | None]]:
    """Returns absolute paths, and the folder in which a search found them: of a folder, of a pattern, or the one itself."""
    if files := tar_files(path):
        return [(file.absolute(), path) for file in files]
    if not glob.has_magic(str(path)) or os.path.lexists(path):
        return [(path.absolute(), None)]
    if not (matches := sorted(glob.glob(str(path)))):  # noqa: PTH207  (Path.glob takes no absolute pattern)
        raise DataError(f"source must be a pattern that fits shards; found none for {str(path)!r}.")
    folder = next(parent for parent in path.absolute().parents if not glob.has_magic(str(parent)))
    return [(Path(match).absolute(), folder) for match in matches]


def _problem(path: Path, folder: Path | None, follow_links: bool) -> Problem | None:
    try:
        found = resolve_inside(folder or path.parent, path, follow_links=follow_links or folder is None)
        with open_regular(found) as file:
            return None if file.read(1) else Problem("shard empty", f"{path}: no bytes")
    except FileNotFoundError:
        return Problem("shard unreadable", f"{path}: no such file")
    except OSError as error:
        return Problem("shard unreadable", f"{path}: {error.strerror}")


def _checked(url: str, allow_commands: bool) -> str:
    try:
        check_url(url, allow_commands=allow_commands)
    except ValueError as error:
        raise DataError(f"source: {error}.") from error
    return url


def has_caption_lines(shard: str) -> bool:
    """Returns whether `txt` has a caption a line: a `dataset_type.txt` beside the shard, or above, says `retrieval`.

    CLIP_benchmark's sets for retrieval have it.
    """
    for place in () if is_url(shard) else Path(shard).parents[:2]:
        with suppress(OSError), open_regular(place / "dataset_type.txt") as file:
            return file.read(64).strip().lower() == b"retrieval"
    return False
