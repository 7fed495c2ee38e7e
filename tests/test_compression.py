"""The benchmark of compression, end to end on a minimal setting."""

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "compression.py"
SETTING = {
    "steps": 2, "batch-size": 16, "train": 32, "pairs": 24, "test": 32, "groups": 1, "budgets": 0.3, "seeds": 0,
    "part-seeds": 0, "long-steps": 3,
}  # fmt: skip


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    settings = [text for name, value in SETTING.items() for text in (f"--{name}", str(value))]
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *settings, *map(str, arguments)])
    runpy.run_path(str(SCRIPT), run_name="__main__")


def test_rows_of_the_grid_and_how_a_run_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, figure = tmp_path / "rows.json", tmp_path / "figure.png"
    common = ("--json", file, "--plot", figure, "--scores", tmp_path / "scores", "--parts", "grid", "--criteria")
    run(monkeypatch, *common, "MoPE", "Hessian")
    rows: list[dict[str, Any]] = json.loads(file.read_text())["grid"]
    assert {(row["criterion"], row["budget"], row["seed"], row["stage"]) for row in rows} == {
        (name, budget, 0, stage)
        for name, budget in (("dense", 1.0), ("MoPE", 0.3), ("Hessian", 0.3))
        for stage in ("pruned", "trained")
    }
    assert all(0 <= row[name] <= 100 for row in rows for name in ("i2t_r1", "t2i_r1"))
    shares = [row["share"] for row in rows if row["criterion"] != "dense"]
    assert 0.2 < min(shares) <= max(shares) <= 0.31
    assert max(shares) - min(shares) < 0.01
    assert all(row["steps"] == 2 and row["cpu_seconds"] > 0 for row in rows if row["stage"] == "trained")
    assert figure.read_bytes().startswith(b"\x89PNG")

    rows[0]["i2t_r1"] = 12.5  # what is there is not made again
    file.write_text(json.dumps(json.loads(file.read_text()) | {"grid": rows[:4]}))
    run(monkeypatch, *common, "MoPE", "Hessian", "random")
    resumed = json.loads(file.read_text())["grid"]
    assert resumed[:4] == rows[:4]
    assert [(row["criterion"], row["stage"]) for row in resumed[4:]] == [
        (name, stage) for name in ("Hessian", "random") for stage in ("pruned", "trained")
    ]
    assert [row["i2t_r1"] for row in resumed[4:6]] == [row["i2t_r1"] for row in rows[4:6]]
    out = capsys.readouterr().out
    assert "| MoPE |" in out
    assert "30% kept, target 0.95" in out

    with pytest.raises(SystemExit, match="is of another run"):
        run(monkeypatch, *common, "MoPE", "--steps", "3")
