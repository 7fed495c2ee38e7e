"""The command line; the work behind it is tested on its own."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from torch_pruning_mope import Counts, DualEncoder, Pairs, __version__, score
from torch_pruning_mope.cli import app
from torch_pruning_mope.demo import DemoResult

RECALLS = {"i2t_r1": 80.0, "i2t_r5": 98.0, "t2i_r1": 79.0, "t2i_r5": 97.0}
ROWS: list[dict[str, Any]] = [
    {"criterion": "", "stage": "dense", "parameters": 4e6, "multiply_adds": 67e6, **RECALLS, "seconds": 0.0},
    {"criterion": "mope", "stage": "removed", "parameters": 2e6, "multiply_adds": 39e6, **RECALLS, "seconds": 5.0},
]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, encoder: DualEncoder, pairs: Pairs) -> dict[str, Any]:
    """What the demo was called with; it answers at once."""
    given: dict[str, Any] = {}
    table = score(encoder, pairs, groups=2, progress=False)

    def answer(**arguments: Any) -> DemoResult:
        given.update(arguments)
        return DemoResult(ROWS, table, Counts(52, 6656, 320), Counts(16, 3328, 0), 116_608)

    monkeypatch.setattr("torch_pruning_mope.demo.run_demo", answer)
    return given


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_version() -> None:
    assert __version__ in invoke("--version").output


def test_demo_is_a_subcommand() -> None:
    assert "demo" in invoke("--help").output
    text = invoke("demo", "--help").output
    for option in ("--seed", "--head-ratio", "--ffn-ratio", "--steps", "--pairs", "--json", "--plot"):
        assert option in text


def test_demo_prints_and_writes(asked: dict[str, Any], tmp_path: Path) -> None:
    rows, picture = tmp_path / "rows.json", tmp_path / "scores.svg"
    result = invoke("demo", "--seed", 3, "--head-ratio", 0.2, "--steps", 5, "--json", rows, "--plot", picture)
    assert result.exit_code == 0, result.output
    assert asked == {"seed": 3, "head_ratio": 0.2, "ffn_ratio": 0.5, "steps": 5, "pairs": 1000, "test_pairs": 3000}
    assert "without 16 of its 52 heads and 3328 of its 6656 FFN neurons" in " ".join(result.output.split())
    assert "2.00 M" in result.output
    assert [entry["criterion"] for entry in json.loads(rows.read_text())] == ["", "mope"]
    assert picture.read_text().startswith("<?xml")


def test_a_folder_that_is_missing_is_found_out_first(asked: dict[str, Any], tmp_path: Path) -> None:
    result = invoke("demo", "--json", tmp_path / "nowhere" / "rows.json")
    assert result.exit_code == 2
    assert not asked


def test_a_plot_of_an_unknown_format_is_found_out_first(asked: dict[str, Any], tmp_path: Path) -> None:
    result = invoke("demo", "--plot", tmp_path / "scores.docx")
    assert result.exit_code == 2
    assert not asked
