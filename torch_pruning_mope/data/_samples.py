"""Samples of WebDataset shards, read from tar archives that anybody may have made, within bounds on what is unpacked."""

from __future__ import annotations

import errno
import gzip
import io
import re
import tarfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from PIL import Image

from .._io import MOST_TEXT, open_regular, parse_json
from .._io._urls import ByteStream, is_url, open_url
from ._decode import Unusable, as_captions, read_picture
from ._skipped import Problem

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
    """Returns the picture and the captions of a sample, or raises Unusable; `caption_lines`: its `txt` has one a line."""
    content = image_of(sample, where)
    if max(len(sample.get(key, b"")) for key in ("txt", "json")) > MOST_TEXT:
        raise Unusable(Problem("entry malformed", f"{where}: more than {MOST_TEXT} bytes of text"))
    try:
        text = sample["txt"].decode("utf-8-sig") if "txt" in sample else None
        captions = as_captions(text.splitlines() if text and caption_lines else text)
        if not captions and "json" in sample:
            about = parse_json(sample["json"])
            captions = as_captions(about.get(caption_key)) if isinstance(about, dict) else ()
    except ValueError as error:
        raise Unusable(Problem("entry malformed", f"{where}: {error}")) from error
    if not captions:
        raise Unusable(Problem("caption missing", f"{where}: {_keys(sample)}"))
    return read_picture(io.BytesIO(content), where), captions


def image_of(sample: Sample, where: str) -> bytes:
    """Returns the content of a sample's image file, or raises Unusable."""
    found: bytes | None = next((sample[key] for key in IMAGE_KEYS if key in sample), None)
    if found is None:
        raise Unusable(Problem("image missing", f"{where}: {_keys(sample)}"))
    return found


def _keys(sample: Sample) -> str:
    return f"has {', '.join(key for key in sample if not key.startswith('__'))}"
