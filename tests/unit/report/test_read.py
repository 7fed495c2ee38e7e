"""Run folders as they are read: logs, rows in order, and damaged or foreign files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from torch_pruning_mope.distillation import TrainingStep
from torch_pruning_mope.report import ChangedExamples
from torch_pruning_mope.report._read import MAKERS, labels, read_evaluation, read_run
from torch_pruning_mope.report._text import without_paths
from torch_pruning_mope.runs import RunFolder, TrainingLog, read_training

from .conftest import STEPS, row


def test_a_log_reads_back_without_a_torn_last_line(tmp_path: Path) -> None:
    path, log = tmp_path / "training.jsonl", TrainingLog(RunFolder(tmp_path))
    for step in STEPS:
        log.add(step)
    with path.open("a") as file:
        file.write('{"step": 46, "loss": 0.5, "extra": "x"}\n')
    assert read_training(path) == [*STEPS, TrainingStep(46, 0.5)]
    whole = path.read_text()
    path.write_text(whole + whole[:20])
    assert read_training(path) == [*STEPS, TrainingStep(46, 0.5)]
    for line in (whole[:20], "[]", '{"step": 1}', '{"step": 1, "loss": 1, "terms": {"a": "x"}}', "[" * 100_000):
        path.write_text(line + "\n" + whole)
        with pytest.raises(ValueError, match="line 1: "):
            read_training(path)


def test_rows_are_in_order_and_told_apart(full_run: Path, tmp_path: Path) -> None:
    rows = read_evaluation(full_run / "evaluation.json")
    assert labels(rows) == ["dense", "MoPE, pruned", "MoPE, distilled", "random, pruned", "Taylor, pruned"]
    assert rows[1].r1 == pytest.approx((50.0 + 47.5) / 2)
    dense = {"model": "m", "criterion": "", "stage": "dense", "task": "zero_shot", "data": "x", "top1": 50}
    written = [dense, row("MoPE", "pruned", model="a"), row("MoPE", "pruned", model="b"), row("", "reconstructed")]
    (tmp_path / "evaluation.json").write_text(json.dumps({"rows": written}))
    rows = read_evaluation(tmp_path / "evaluation.json")
    assert labels(rows) == ["dense", "a: MoPE, pruned", "b: MoPE, pruned", "reconstructed"]
    assert (rows[0].numbers, rows[0].about) == ({"top1": 50.0}, "zero_shot, x")


def test_folders_without_anything_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="run_folder must be a folder; found none at"):
        read_run(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"must hold one of scores.json, plan.json, .* Score a model first"):
        read_run(tmp_path)


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_a_damaged_file_is_named(run: Path, name: str) -> None:
    for content in (b'\xff\xfe{"format"', b"[" * 100_000 + b"\n", b'{"rows": [{"top1": "many"}]}\n', b"[1]\n"):
        (run / name).write_bytes(content + b"\n")
        with pytest.raises(ValueError, match=rf"{name} must be written by .* Delete it, or write it again"):
            read_run(run)


@pytest.mark.parametrize(
    "change", [{"tower": "../../x"}, {"kind": "??"}, {"layer": -1}, {"layer": 10**9}, {"index": 10**9}]
)
@pytest.mark.parametrize(("name", "key"), [("scores.json", "data"), ("plan.json", "scores")])
def test_units_of_no_model_are_refused(run: Path, change: dict[str, Any], name: str, key: str) -> None:
    content = json.loads((run / name).read_text())
    row = content[key][0]
    row.get("unit", row).update(change)
    (run / name).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"{name} must be"):
        read_run(run)


def test_examples_read_back(full_run: Path, tmp_path: Path) -> None:
    found = ChangedExamples.load(full_run / "examples.json")
    found.save(tmp_path / "again.json")
    assert ChangedExamples.load(tmp_path / "again.json") == found
    assert len(found.examples) > 3


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda c: c.update(format=2), "format must be 1"),
        (lambda c: c.pop("counts"), "counts"),
        (lambda c: c["examples"][0].update(outcome="<b>"), "examples[0].outcome must be"),
        (lambda c: c["examples"][0].update(query={}), "index"),
        (lambda c: c["examples"][0].update(queries={"index": 1}), "queries"),
        (lambda c: c["counts"]["i2t"].update(worse="many"), "counts.i2t.worse must be int"),
    ],
)
def test_damaged_examples_are_refused(
    full_run: Path, tmp_path: Path, damage: Callable[[dict[str, Any]], object], message: str
) -> None:
    content = json.loads((full_run / "examples.json").read_text())
    damage(content)
    (tmp_path / "examples.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"path must be of examples written by ChangedExamples.save") as caught:
        ChangedExamples.load(tmp_path / "examples.json")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("data: /home/alice/My Data/coco.json", "data: …/coco.json"),
        ("data: '/home/alice/a.csv'\nroot: /srv/b", "data: '…/a.csv'\nroot: …/b"),
        ("model: local-dir:/home/alice/clip", "model: local-dir:…/clip"),
        ("- ~/x/y.tar", "- …/y.tar"),
        ("C:\\Users\\alice\\a.csv", "…/a.csv"),
        ("\\\\server\\share\\a.csv", "…/a.csv"),
        ("file:///home/alice/a.tar", "…/a.tar"),
        ("pipe:cat /home/alice/a.tar", "pipe:cat …/a.tar"),
        ("https://alice:secret@host/data/{0..9}.tar", "https://host/data/{0..9}.tar"),
        ("ViT-B-32@laion2b/x, data/coco.json, ./a/b.csv, 1/2", "ViT-B-32@laion2b/x, data/coco.json, ./a/b.csv, 1/2"),
    ],
)
def test_paths_of_the_machine_are_cut(text: str, shown: str) -> None:
    assert without_paths(text) == shown
