"""Logs and damaged files."""

import json
from pathlib import Path
from typing import Any

import pytest

from torch_pruning_mope import TrainingStep
from torch_pruning_mope.report import append_jsonl
from torch_pruning_mope.report._evaluation import labels, read_evaluation
from torch_pruning_mope.report._run import MAKERS, read_run
from torch_pruning_mope.report._training import read_training, stretches

from ...asserts import unchecked
from .conftest import ROWS, STEPS, row


def test_a_log_reads_back(tmp_path: Path) -> None:
    for step in STEPS:
        append_jsonl(tmp_path / "log.jsonl", step)
    append_jsonl(tmp_path / "log.jsonl", {"step": 46, "loss": 0.5, "extra": "x"})
    assert read_training(tmp_path / "log.jsonl") == [*STEPS, TrainingStep(46, 0.5)]


def test_only_mappings_and_dataclasses_are_logged(tmp_path: Path) -> None:
    for entry in (3, TrainingStep):
        with pytest.raises(TypeError, match="entry must be a mapping or a dataclass; found"):
            unchecked(append_jsonl)(tmp_path / "log.jsonl", entry)
    assert not (tmp_path / "log.jsonl").exists()


def test_a_torn_last_line_is_left_out_and_others_are_not(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    for step in STEPS[:3]:
        append_jsonl(path, step)
    whole = path.read_text()
    path.write_text(whole + whole[:20])
    assert read_training(path) == STEPS[:3]
    path.write_text(whole[:20] + "\n" + whole)
    with pytest.raises(ValueError, match="line 1 must be JSON; found otherwise"):
        read_training(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[]", "entry 1 must be a TrainingStep"),
        ('{"step": 1}', "KeyError"),
        ('{"step": 1, "loss": NaN}', "entry 1 must hold finite numbers"),
        ('{"step": 1, "loss": 1, "terms": {"a": "x"}}', "could not convert"),
    ],
)
def test_lines_that_are_no_steps_are_refused(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "log.jsonl").write_text(line + "\n")
    with pytest.raises(ValueError, match=message):
        read_training(tmp_path / "log.jsonl")


def test_a_log_that_goes_back_is_drawn_in_stretches() -> None:
    steps = [*STEPS[:5], *STEPS[3:6], *STEPS[:2]]
    assert stretches(steps) == [STEPS[:5], STEPS[3:6], STEPS[:2]]
    assert stretches([]) == []


def test_rows_are_in_order_and_dense_comes_first(full_run: Path) -> None:
    rows = read_evaluation(full_run / "evaluation.json")
    assert labels(rows) == ["dense", "MoPE, pruned", "MoPE, distilled", "random, pruned", "Taylor, pruned"]
    assert rows[1].r1 == pytest.approx((50.0 + 47.5) / 2)


def test_rows_of_the_evaluation_command_are_read(tmp_path: Path) -> None:
    dense = {
        "model": "m",
        "criterion": "",
        "stage": "dense",
        "task": "zero_shot",
        "data": "x/",
        "part": "all",
        "top1": 50,
    }
    (tmp_path / "evaluation.json").write_text(json.dumps({"rows": [dense, {**dense, "stage": "pruned"}]}))
    rows = read_evaluation(tmp_path / "evaluation.json")
    assert labels(rows) == ["dense", "pruned"]
    assert [(row.accuracies, row.about) for row in rows] == [({"top1": 50.0}, "zero_shot, x/, all")] * 2


def test_rows_of_one_label_are_told_apart_by_their_models(tmp_path: Path) -> None:
    rows = [row("MoPE", "pruned", model=name) for name in ("a", "b")]
    (tmp_path / "evaluation.json").write_text(json.dumps({"rows": rows}))
    assert labels(read_evaluation(tmp_path / "evaluation.json")) == ["a: MoPE, pruned", "b: MoPE, pruned"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "must be JSON; found otherwise"),
        ("[" * 100_000, "must be JSON; found otherwise"),
        ("[]", r'must hold \{"rows": \[\{...\}, ...\]\}; found no such list'),
        ('{"rows": [1]}', "found no such list"),
        ('{"rows": [{}]}', "row 1: model must be a word; found None"),
        (
            json.dumps({"rows": [ROWS[0], row("x", "pruned") | {"parameters": "many"}]}),
            "row 2: parameters must be a number",
        ),
        (
            json.dumps({"rows": [row("x", "pruned", i2t_r1=101)]}),
            "row 1: i2t_r1 must be a number from 0 to 100; found 101",
        ),
        (
            json.dumps({"rows": [row("x", "pruned", latency_ms=float("nan"))]}),
            "latency_ms must be a number of at least 0",
        ),
        (
            json.dumps({"rows": [row("x", "pruned", latency_ms=float("inf"))]}),
            "latency_ms must be a number of at least 0",
        ),
        (
            json.dumps({"rows": [row("x", "pruned", multiply_adds=True)]}),
            "multiply_adds must be a number of at least 0",
        ),
    ],
)
def test_damaged_evaluations_are_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "evaluation.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_evaluation(tmp_path / "evaluation.json")


def test_folders_without_anything_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="run_folder must be a folder; found none at"):
        read_run(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"must hold one of scores.json, plan.json, .* Score a model first"):
        read_run(tmp_path)


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_any_damaged_file_is_named(run: Path, name: str) -> None:
    (run / name).write_bytes(b'\xff\xfe{"format"')
    with pytest.raises(ValueError, match=name):
        read_run(run)


@pytest.mark.parametrize("change", [{"tower": "<script>"}, {"kind": "??"}, {"layer": -1}, {"index": 10**9}])
@pytest.mark.parametrize(("name", "key"), [("scores.json", "data"), ("plan.json", "units")])
def test_units_of_no_model_are_refused(run: Path, change: dict[str, Any], name: str, key: str) -> None:
    content = json.loads((run / name).read_text())
    content[key][0].update(change)
    (run / name).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"{name} (must be of units of a model; found Unit|is not: .*TypeCheckError)"):
        read_run(run)


def test_scores_of_other_weights_than_the_plan_are_noted(run: Path) -> None:
    assert read_run(run).notes == ()
    content = json.loads((run / "scores.json").read_text())
    (run / "scores.json").write_text(json.dumps(content | {"weights": "0" * 64}))
    (note,) = read_run(run).notes
    assert "other weights" in note
