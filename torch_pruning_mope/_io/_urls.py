"""URLs of data. Only the caller's own arguments may run commands, and only with ``allow_commands=True``.

webdataset's ``gopen`` (0.2.86 and 1.0.2 read) hands a URL to a process by scheme; 0.2.86 through a shell in every case:

| scheme | 1.0.2 runs | here |
|---|---|---|
| `pipe:` | the rest of the URL, in a shell | with ``allow_commands`` |
| `http:`, `https:` | curl | `urllib`, no process |
| `sftp:`, `ftps:`, `scp:` | curl | with ``allow_commands`` |
| `gs:` | gsutil | with ``allow_commands`` |
| `htgs:` | curl | with ``allow_commands`` |
| `ais:`, and those in the environment's `USE_AIS_FOR` | ais | with ``allow_commands`` |
| `hf:` | curl, the token among its arguments | `huggingface_hub`, no process |
| `file:` | – | a path |
"""

import re
import sys
import time
import urllib.error
import urllib.request
from typing import Any, Protocol, cast, runtime_checkable

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")
_PLAIN = ("file", "hf", "http", "https")
_TIMEOUT = 60.0
_PAUSES = (1.0, 4.0)
"""Seconds before another attempt."""


@runtime_checkable
class ByteStream(Protocol):
    """Bytes to read in order."""

    def read(self, size: int = -1, /) -> bytes: ...

    def close(self) -> None: ...


def is_url(text: str) -> bool:
    """Returns True for ``scheme:…`` with a scheme of at least two letters."""
    return _SCHEME.match(text) is not None


def check_url(url: str, *, allow_commands: bool = False) -> None:
    """Raises ValueError for a scheme that is unknown, or that runs a command without leave."""
    scheme = url.partition(":")[0].lower()
    if scheme in _PLAIN:
        return
    known = sorted(set(_gopen().gopen_schemes) - {"__default__", *_PLAIN})
    if scheme not in known:
        raise ValueError(
            f"URLs must be of {', '.join((*_PLAIN, *known))}; found {url!r}. Use pipe: with a command that prints the "
            "file, such as pipe:aws s3 cp URL -, or pass a Path to open a file of this name"
        )
    if not allow_commands:
        raise ValueError(
            f"URLs of {', '.join(known)} run a command, which needs allow_commands=True; found {url!r}. Allow it if the URL is "
            "your own, or pass a Path to open a file of this name"
        )


def open_url(url: str, *, allow_commands: bool = False) -> ByteStream:
    """Opens a URL to read its bytes in order; raises ValueError if it is refused, OSError if it fails."""
    check_url(url, allow_commands=allow_commands)
    scheme = url.partition(":")[0].lower()
    if scheme == "hf":
        from huggingface_hub import HfFileSystem

        return cast("ByteStream", HfFileSystem().open(url, "rb"))
    if scheme not in {"http", "https"}:
        return cast("ByteStream", _gopen().gopen(url))
    for pause in _PAUSES:
        try:
            return _open_http(url)
        except urllib.error.HTTPError as error:
            if error.code < 500:
                raise
        except urllib.error.URLError:
            pass
        time.sleep(pause)
    return _open_http(url)


def _open_http(url: str) -> ByteStream:
    return cast("ByteStream", urllib.request.urlopen(url, timeout=_TIMEOUT))  # noqa: S310  (the scheme is checked)


def _gopen() -> Any:
    from webdataset import gopen  # the function, which hides its module

    return sys.modules[gopen.__module__]
