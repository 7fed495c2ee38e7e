"""Files that somebody else made: JSON nested without end, FIFOs, names that a terminal would obey."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from torch_pruning_mope import Plan, ScoreTable
from torch_pruning_mope._io import holds, open_regular, parse_json, printable, read_json


@pytest.mark.parametrize("load", [read_json, Plan.load, ScoreTable.load])
def test_json_of_any_kind_is_read_or_refused(load: Callable[[Path], Any], tmp_path: Path) -> None:
    for content in ("[" * 100_000, '{"a":' * 100_000, "{", "\ufeff{", "9" * 5000):
        (tmp_path / "a.json").write_text(content)
        with pytest.raises(ValueError, match=r"\w"):
            load(tmp_path / "a.json")
    os.mkfifo(tmp_path / "b.json")
    with pytest.raises(OSError, match="no regular file"):
        load(tmp_path / "b.json")


def test_sizes_have_bounds(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"[1, 2]")
    assert read_json(tmp_path / "a.json", most=6) == parse_json("[1, 2]")
    with pytest.raises(OSError, match="has 6 bytes, and at most 5 are read"):
        read_json(tmp_path / "a.json", most=5)
    with pytest.raises(OSError, match="no regular file"):
        open_regular(tmp_path)


def test_names_are_shown_without_effect() -> None:
    assert printable("a\x1b[31m\nb\ud800\u202e.png") == r"a\x1b[31m\nb\ud800\u202e.png"
    assert printable("é" * 300) == "é" * 100 + "…" + "é" * 100


def test_a_mark_is_looked_for_where_it_belongs(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("x" * 100 + "mark")
    assert holds(page, "mark")
    assert holds(page, "mark", within=104)
    assert not holds(page, "mark", within=103)
    assert not holds(tmp_path, "mark")
    assert not holds(tmp_path / "none", "mark")
