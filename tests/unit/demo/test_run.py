"""The demo from end to end."""

import dataclasses
import functools
import json
import statistics
from pathlib import Path

import pytest
from typer.testing import CliRunner

from torch_pruning_mope.cli import app
from torch_pruning_mope.demo import CRITERIA, DemoResult, Row, fine_tune, run_demo


def tiny(seed: int = 0) -> DemoResult:
    return run_demo(seed=seed, steps=1, pairs=8, test_pairs=24, progress=False)


def timeless(result: DemoResult) -> list[Row]:
    return [dataclasses.replace(row, seconds=0.0) for row in result.rows]


def check_rows(rows: list[Row]) -> None:
    expected = [("dense", "dense"), ("dense", "fine-tuned")]
    expected += [(name, stage) for name in CRITERIA for stage in ("pruned", "fine-tuned")]
    assert [(row.criterion, row.stage) for row in rows] == expected
    for before, after in zip(rows[::2], rows[1::2], strict=True):
        assert (before.params, before.macs) == (after.params, after.macs)
    for row in rows[2:]:
        assert row.params < rows[0].params
        assert row.macs < rows[0].macs
    for row in rows:
        assert 0 <= row.i2t_r1 <= row.i2t_r5 <= 100
        assert 0 <= row.t2i_r1 <= row.t2i_r5 <= 100


def test_same_seed_same_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch_pruning_mope.demo._run.fine_tune", functools.partial(fine_tune, batch_size=8))
    first, again = tiny(), tiny()
    check_rows(first.rows)
    assert timeless(first) == timeless(again)
    assert first.scores == again.scores
    assert (first.removed.heads, first.removed.neurons) == (16, 3328)
    assert (first.before.heads, first.before.neurons) == (52, 6656)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"pairs": 1}, "size: must be between 2"),
        ({"test_pairs": 0}, "size: must be between 2"),
        ({"head_ratio": 1.0}, r"head_ratio must be in \[0, 1\)"),
        ({"ffn_ratio": -0.1}, r"ffn_ratio must be in \[0, 1\)"),
        ({"head_ratio": 0.99}, "head_ratio must leave every layer at least 1 head"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run_demo(**arguments, progress=False)  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_whole_demo(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["demo", "--json", str(tmp_path / "r.json"), "--plot", str(tmp_path / "p.png")])
    assert result.exit_code == 0, result.output
    entries = json.loads((tmp_path / "r.json").read_text())
    assert all(set(entry) == {field.name for field in dataclasses.fields(Row)} for entry in entries)
    rows = [Row(**entry) for entry in entries]
    check_rows(rows)
    assert (tmp_path / "p.png").stat().st_size > 50_000

    def recall(criterion: str, stage: str) -> float:
        row = next(row for row in rows if (row.criterion, row.stage) == (criterion, stage))
        return statistics.mean([row.i2t_r1, row.t2i_r1])

    assert recall("mope", "pruned") > recall("random", "pruned")
    for criterion in CRITERIA:
        assert recall(criterion, "fine-tuned") > recall(criterion, "pruned")
