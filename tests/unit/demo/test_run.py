"""The demo from end to end."""

import json
import math
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
from typer.testing import CliRunner

from torch_pruning_mope.cli import app
from torch_pruning_mope.demo import CRITERIA, run_demo

STAGES = ("removed", "reconstructed", "fine-tuned")


def check(rows: list[dict[str, Any]]) -> None:
    """All rows in order, sizes that fit, recalls that are percentages."""
    expected = [("", "dense"), ("", "fine-tuned"), *((name, stage) for name in CRITERIA for stage in STAGES)]
    assert [(row["criterion"], row["stage"]) for row in rows] == expected
    sizes = [(row["parameters"], row["multiply_adds"]) for row in rows]
    assert sizes[0] == sizes[1]
    for place in range(2, len(rows), 3):
        assert len(set(sizes[place : place + 3])) == 1
        assert all(small < large for small, large in zip(sizes[place], sizes[0], strict=True))
    for row in rows:
        for way in ("i2t", "t2i"):
            assert 0 <= row[f"{way}_r1"] <= row[f"{way}_r5"] <= 100


def only(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """All criteria are run by their own test."""
    for name in CRITERIA.keys() - set(names):
        monkeypatch.delitem(CRITERIA, name)


@pytest.mark.usefixtures("_shallow")
def test_the_same_seed_makes_the_same_table(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "mope", "random")
    monkeypatch.setattr("torch_pruning_mope.demo._run.BATCH", 16)
    found = []
    for _ in range(2):
        result = run_demo(steps=1, pairs=8, test_pairs=24, progress=False)
        check(result.rows)
        assert all(row.pop("seconds") >= 0 for row in result.rows)
        found.append((result.rows, result.scores))
    assert found[0] == found[1]
    before, removed = result.before, result.removed
    assert (removed.heads, removed.neurons) == (math.ceil(0.3 * before.heads), before.neurons // 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"pairs": 1}, "size must be between 2"),
        ({"test_pairs": 0}, "size must be between 2"),
        ({"head_ratio": 1.0}, r"head_ratio must be in \[0, 1\)"),
        ({"ffn_ratio": -0.1}, r"ffn_ratio must be in \[0, 1\)"),
        ({"head_ratio": 0.99}, "head_ratio must leave every layer at least 1 head"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run_demo(**arguments, progress=False)  # type: ignore[arg-type]


def test_a_small_demo_shows_what_it_should(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a fraction of the pairs and steps, damage and recovery are still far larger than the noise of 150 pairs."""
    only(monkeypatch, "mope", "random")
    files = ["--json", str(tmp_path / "r.json"), "--plot", str(tmp_path / "p.png")]
    small = ["--pairs", "32", "--test-pairs", "150", "--steps", "1", "--head-ratio", "0.5"]
    result = CliRunner().invoke(app, ["demo", *small, *files])
    assert result.exit_code == 0, result.output
    rows = json.loads((tmp_path / "r.json").read_text())
    check(rows)
    assert (tmp_path / "p.png").stat().st_size > 50_000
    recall = {(row["criterion"], row["stage"]): mean([row["i2t_r1"], row["t2i_r1"]]) for row in rows}
    for stage in ("removed", "reconstructed"):
        assert recall["mope", stage] > recall["random", stage] + 5
    for criterion in CRITERIA:
        assert recall[criterion, "reconstructed"] > recall[criterion, "removed"] + 2
        assert recall["", "dense"] > recall[criterion, "fine-tuned"]
