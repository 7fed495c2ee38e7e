"""The benchmark of compression, end to end: two small random layers per tower in place of the tiny CLIP, and few pairs."""

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest

import torch_pruning_mope as mope
from torch_pruning_mope.data import _tiny_clip

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "compression.py"
SETTING = {
    "steps": 2, "batch-size": 8, "train": 16, "pairs": 16, "test": 16, "groups": 2, "budgets": 0.3, "seeds": 0, "part-seeds": 0,
    "long-steps": 3,
}  # fmt: skip
Run = Callable[..., str]


def small_clip() -> open_clip.CLIP:
    """What the scenes fit, with random weights."""
    config = _tiny_clip.tiny_clip_config()
    vision = open_clip.CLIPVisionCfg(
        **config["vision_cfg"] | {"layers": 2, "width": 32, "head_width": 16, "patch_size": 32}
    )
    text = open_clip.CLIPTextCfg(**config["text_cfg"] | {"layers": 2, "width": 32, "heads": 2})
    return open_clip.CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text).eval()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the script as a user would; returns what it prints."""
    model = small_clip()
    monkeypatch.setattr(mope, "load_tiny_clip", lambda: _copy(model))
    monkeypatch.setattr(_tiny_clip, "build_tiny_clip", small_clip)
    monkeypatch.syspath_prepend(str(SCRIPT.parent))

    def call(*arguments: object) -> str:
        settings = [text for name, value in SETTING.items() for text in (f"--{name}", str(value))]
        files = ["--json", str(tmp_path / "rows.json"), "--scores", str(tmp_path / "scores")]
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *settings, *files, *map(str, arguments)])
        runpy.run_path(str(SCRIPT), run_name="__main__")
        return capsys.readouterr().out

    return call


def _copy(model: open_clip.CLIP) -> open_clip.CLIP:
    again = small_clip()
    again.load_state_dict(model.state_dict())
    return again


def rows_of(tmp_path: Path, part: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((tmp_path / "rows.json").read_text())[part]
    return found


def test_rows_of_the_grid_and_how_a_run_goes_on(run: Run, tmp_path: Path) -> None:
    run("--parts", "grid", "--criteria", "MoPE", "Hessian", "scratch")
    rows = rows_of(tmp_path, "grid")
    assert [(row["criterion"], row["budget"], row["seed"], row["stage"]) for row in rows] == [
        (name, budget, 0, stage)
        for name, budget in (("dense", 1.0), ("MoPE", 0.3), ("Hessian", 0.3), ("scratch", 0.3))
        for stage in ("pruned", "trained")
    ]
    assert all(0 <= row[name] <= 100 for row in rows for name in ("i2t_r1", "t2i_r1"))
    shares = {row["criterion"]: row["share"] for row in rows}
    assert shares["dense"] == 1
    assert shares["scratch"] == shares["MoPE"] <= 0.3
    assert 0.25 < shares["Hessian"] <= 0.31
    assert all(row["steps"] == 2 and row["cpu_seconds"] > 0 for row in rows if row["stage"] == "trained")

    rows[0]["i2t_r1"] = 12.5  # what is there is not made again
    file = tmp_path / "rows.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"grid": rows[:4]}))
    figure = tmp_path / "figure.png"
    out = run("--parts", "grid", "--criteria", "MoPE", "Hessian", "random", "--plot", figure)
    resumed = rows_of(tmp_path, "grid")
    assert resumed[:4] == rows[:4]
    assert [(row["criterion"], row["stage"]) for row in resumed[4:]] == [
        (name, stage) for name in ("Hessian", "random") for stage in ("pruned", "trained")
    ]
    assert [row["i2t_r1"] for row in resumed[4:6]] == [row["i2t_r1"] for row in rows[4:6]]
    assert "| MoPE |" in out
    assert "30% kept, MoPE, target 0.95" in out
    assert figure.read_bytes().startswith(b"\x89PNG")

    with pytest.raises(SystemExit, match="is of another run"):
        run("--parts", "grid", "--steps", "3")


def test_rows_of_the_other_parts(run: Run, tmp_path: Path) -> None:
    out = run("--parts", "losses", "order", "allocation", "teacher", "sibling", "long", "--growing-steps", "2")
    [teacher] = rows_of(tmp_path, "teacher")
    assert teacher["largest_difference"] < 1e-5
    assert teacher["gain"] > 0
    losses = rows_of(tmp_path, "losses")
    assert [row["mode"] for row in losses] == ["equal steps"] * 6 + ["equal time"] * 2
    order = rows_of(tmp_path, "order")
    assert len({row["order"] for row in order}) == 4
    assert max(row["share"] for row in order) <= 0.5
    uniform, planned, timed = rows_of(tmp_path, "allocation")[::2]
    assert planned["share"] <= uniform["share"]
    assert timed["milliseconds"] > 0
    own, larger = rows_of(tmp_path, "sibling")
    assert larger["teacher_parameters"] > own["teacher_parameters"]
    assert [row["steps"] for row in rows_of(tmp_path, "long") if row["stage"] == "trained"] == [3, 3]
    for title in (
        "A larger teacher",
        "Longer training",
        "Terms of the loss",
        "Width and depth",
        "Allocation",
        "The teacher's embeddings",
    ):
        assert f"## {title}" in out
