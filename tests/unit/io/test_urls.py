"""URLs: what each scheme does, and that the web needs no process."""

import http.server
import io
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from torch_pruning_mope._io import _urls
from torch_pruning_mope._io._urls import check_url, is_url, open_url


class _Handler(http.server.SimpleHTTPRequestHandler):
    failures = 0

    def do_GET(self) -> None:
        if self.path == "/busy" and _Handler.failures:
            _Handler.failures -= 1
            self.send_error(503)
        else:
            self.path = "/pyproject.toml" if self.path == "/busy" else self.path
            super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(_urls, "_PAUSES", (0.0, 0.0))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_the_web_is_read_without_a_process(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess.Popen, "__init__", lambda *_, **__: pytest.fail("a process"))
    _Handler.failures = 2
    assert open_url(f"{address}/busy").read() == Path("pyproject.toml").read_bytes()
    _Handler.failures = 3
    with pytest.raises(OSError, match="503"):
        open_url(f"{address}/busy")
    with pytest.raises(OSError, match="404"):
        open_url(f"{address}/none")


def test_the_hub_is_read_without_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess.Popen, "__init__", lambda *_, **__: pytest.fail("a process"))
    monkeypatch.setattr("huggingface_hub.HfFileSystem.open", lambda _, url, mode: io.BytesIO(b"[shard]"))
    with open_url("hf://datasets/a/b/0.tar") as file:  # type: ignore[attr-defined]
        assert file.read(1) == b"["


def test_commands_need_leave() -> None:
    assert open_url("pipe:printf 12", allow_commands=True).read() == b"12"
    for url in ("pipe:printf 12", "PIPE:printf 12", "gs://a/b"):
        with pytest.raises(ValueError, match="run a command, which needs allow_commands=True; found"):
            open_url(url)
    with pytest.raises(ValueError, match=r"URLs must be of file, hf, http, https, .*pipe"):
        check_url("s3://a/b", allow_commands=True)
    assert not is_url("/a:b.tar")
    assert not is_url("C:\\a.tar")
