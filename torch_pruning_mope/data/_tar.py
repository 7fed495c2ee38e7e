"""Tar archives that anybody may have made, as WebDataset's samples, within bounds on what is unpacked."""

import errno
import gzip
import re
import tarfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from .._io import MOST_TEXT, open_regular
from .._io._urls import ByteStream, is_url, open_url

MOST_BETWEEN = 2**28
"""Bytes unpacked from one file that is used to the next, and of each of these."""
USED = frozenset({"cls", "jpeg", "jpg", "json", "png", "txt", "webp"})
"""Suffixes of the files that samples are made of."""
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
