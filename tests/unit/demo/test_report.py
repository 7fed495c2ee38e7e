"""The table in print and as JSON."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from torch_pruning_mope.demo import Row, rich_table, save_json

ROWS = [
    Row("dense", "dense", 3_774_849, 67_651_840, 80.25, 98.0, 79.5, 97.5, 0.0),
    Row("dense", "fine-tuned", 3_774_849, 67_651_840, 81.0, 98.5, 80.0, 98.0, 12.34),
    Row("mope", "pruned", 2_230_000, 39_300_000, 60.0, 90.0, 61.0, 91.0, 5.0),
]


def printed(rows: list[Row]) -> str:
    console = Console(width=120, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    console.print(rich_table(rows, title="Tiny CLIP"))
    return console.export_text()


def test_table_shows_every_figure() -> None:
    text = printed(ROWS)
    assert "Tiny CLIP" in text
    line = next(line for line in text.splitlines() if "MoPE" in line)
    assert [cell.strip() for cell in line.strip("│").split("│")] == [
        "MoPE", "pruned", "2.23 M", "39.3", "60.0", "90.0", "61.0", "91.0", "5.0",
    ]  # fmt: skip


def test_a_criterion_is_named_once() -> None:
    lines = [line for line in printed(ROWS).splitlines() if "fine-tuned" in line]
    assert "dense" not in lines[0]


@pytest.mark.parametrize("rows", [[], ROWS])
def test_json_is_a_list_of_rows(rows: list[Row], tmp_path: Path) -> None:
    save_json(rows, tmp_path / "rows.json")
    content = json.loads((tmp_path / "rows.json").read_text())
    assert [Row(**entry) for entry in content] == rows
