"""WebDataset shards: found by patterns, folders and URLs, and read within bounds on what is unpacked."""

import errno
import glob
import gzip
import io
import os
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from PIL import Image

from .._io import MOST_TEXT, open_regular, parse_json, printable, resolve_inside
from .._io._urls import ByteStream, check_url, is_url, open_url
from ..errors import DataError
from ._decode import as_captions, read_picture
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
    """Returns True for a URL, several, or a path or pattern of tar files."""
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
                try:
                    check_url(item, allow_commands=allow_commands)
                except ValueError as error:
                    raise DataError(f"source: {error}.") from error
                shards.append(item)
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


def has_caption_lines(shard: str) -> bool:
    """Returns True if `txt` has a caption a line: a `dataset_type.txt` beside the shard, or above, says `retrieval`.

    CLIP_benchmark's sets for retrieval have it.
    """
    for place in () if is_url(shard) else Path(shard).parents[:2]:
        with suppress(OSError), open_regular(place / "dataset_type.txt") as file:
            return file.read(64).strip().lower() == b"retrieval"
    return False


MOST_BETWEEN = 2**28
"""Bytes unpacked from one file that is used to the next, and of each of these."""
IMAGE_KEYS = ("jpg", "png", "jpeg", "webp")
USED = frozenset({*IMAGE_KEYS, "cls", "json", "txt"})
"""Suffixes of the files that are read."""
GZIP = b"\x1f\x8b"
META = re.compile(r"__[^/]*__($|/)")
Sample = dict[str, Any]
"""Content of the files of one name, by suffix, with `__key__` and `__url__`."""


def read_shard(shard: str, note: Callable[[Exception], bool], *, allow_commands: bool = False) -> Iterator[Sample]:
    """Yields the samples of a shard, an absolute path or a URL; files of other suffixes than ``USED`` are empty in them."""
    from webdataset.tariterators import group_by_keys

    yield from group_by_keys(_files(shard, note, allow_commands), handler=note)


def _files(shard: str, note: Callable[[Exception], bool], allow_commands: bool) -> Iterator[dict[str, Any]]:
    """Yields the files of an archive in the form of WebDataset, whose own reader has no bounds."""
    from webdataset.tariterators import base_plus_ext

    try:
        with (
            closing(
                open_url(shard, allow_commands=allow_commands) if is_url(shard) else open_regular(Path(shard))
            ) as raw,
            tarfile.open(fileobj=(stream := _Bounded(raw)), mode="r|", tarinfo=_Member) as archive,  # type: ignore[call-overload]
        ):
            for member in archive:
                if member.isreg() and not META.match(member.name):
                    _, suffix = base_plus_ext(member.name)
                    content = archive.extractfile(member) if suffix and suffix.lower() in USED else None
                    yield {"fname": member.name, "data": content.read() if content else b"", "__url__": shard}
                    if content:
                        stream.left = MOST_BETWEEN
                archive.members = []
    except Exception as error:  # noqa: BLE001  (archives, servers and commands fail in any way)
        note(error)


class _Bounded:
    """A tar archive, unpacked if gzipped, that gives out a limited number of bytes until ``left`` is set again."""

    def __init__(self, raw: ByteStream) -> None:
        self.left = MOST_BETWEEN
        packed = _Packed(raw)
        self._source: Any = gzip.GzipFile(fileobj=packed) if packed.head == GZIP else packed  # type: ignore[call-overload]

    def read(self, size: int) -> bytes:
        found: bytes = self._source.read(size)
        self.left -= len(found)
        if self.left < 0:
            raise OSError(errno.EFBIG, f"more than {MOST_BETWEEN} bytes in one file, or in files that are not used")
        return found


class _Packed:
    """A stream whose first two bytes are known."""

    def __init__(self, raw: ByteStream) -> None:
        self.head, self._raw = raw.read(2), raw
        self._left = self.head

    def read(self, size: int) -> bytes:
        found, self._left = self._left, b""
        return found or self._raw.read(size)


class _Member(tarfile.TarInfo):
    """Header of a file, or of the long names and attributes that tarfile reads into memory before one."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Any:
        found = super().frombuf(buf, encoding, errors)
        if found.size > MOST_TEXT and not found.isreg():
            raise tarfile.ReadError(f"{found.size} bytes of names or attributes")
        return found


def read_sample(
    sample: Sample, caption_key: str, where: str, *, caption_lines: bool = False
) -> tuple[Image.Image, tuple[str, ...]]:
    """Returns the picture and the captions of a sample, or raises Problem; `caption_lines`: its `txt` has one a line."""
    content = image_of(sample, where)
    if max(len(sample.get(key, b"")) for key in ("txt", "json")) > MOST_TEXT:
        raise Problem("entry malformed", f"{where}: more than {MOST_TEXT} bytes of text")
    try:
        text = sample["txt"].decode("utf-8-sig") if "txt" in sample else None
        captions = as_captions(text.splitlines() if text and caption_lines else text)
        if not captions and "json" in sample:
            about = parse_json(sample["json"])
            captions = as_captions(about.get(caption_key)) if isinstance(about, dict) else ()
    except ValueError as error:
        raise Problem("entry malformed", f"{where}: {error}") from error
    if not captions:
        raise Problem("caption missing", f"{where}: {_keys(sample)}")
    return read_picture(io.BytesIO(content), where), captions


def image_of(sample: Sample, where: str) -> bytes:
    """Returns the content of a sample's image file, or raises Problem."""
    found: bytes | None = next((sample[key] for key in IMAGE_KEYS if key in sample), None)
    if found is None:
        raise Problem("image missing", f"{where}: {_keys(sample)}")
    return found


def _keys(sample: Sample) -> str:
    return f"has {', '.join(key for key in sample if not key.startswith('__'))}"
