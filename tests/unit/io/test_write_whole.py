"""Files written whole or not at all."""

from pathlib import Path

import pytest

from torch_pruning_mope._io import write_whole


def test_what_is_written_is_there_and_nothing_else(tmp_path: Path) -> None:
    write_whole(tmp_path / "a.txt", "é\n")
    write_whole(tmp_path / "a.txt", "ü\r\n")
    write_whole(tmp_path / "b.png", b"\x00")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a.txt": b"\xc3\xbc\r\n", "b.png": b"\x00"}


@pytest.mark.parametrize("part", ["write_bytes", "replace"])
def test_a_full_disk_leaves_what_was_there(part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_whole(tmp_path / "a.txt", "old")

    def full(path: Path, _: object) -> None:
        path.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, part, full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(tmp_path / "a.txt", "new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.txt": "old"}
