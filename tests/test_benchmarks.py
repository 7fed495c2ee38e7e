"""The benchmarks of scoring, each run as a user would, on small models with random weights."""

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
from PIL import Image

import torch_pruning_mope as mope

from .test_compression import small_clip
from .unit.checkpoint.cases import register

FOLDER = Path(__file__).parent.parent / "benchmarks"
CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "patch_size": 8, "head_width": 8},
    "text_cfg": {"context_length": 24, "vocab_size": 100, "width": 24, "heads": 4, "layers": 2},
}
Run = Callable[..., Any]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a benchmark; returns the JSON that it writes, or what it prints."""
    words = CONFIG | {"text_cfg": CONFIG["text_cfg"] | {"vocab_size": 49408}}  # type: ignore[operator]
    register(tmp_path, monkeypatch, small=CONFIG, words=words)
    monkeypatch.setattr(mope, "load_tiny_clip", small_clip)
    monkeypatch.syspath_prepend(str(FOLDER))

    def call(name: str, *arguments: object) -> Any:
        monkeypatch.setattr(sys, "argv", [str(FOLDER / name), *map(str, arguments)])
        runpy.run_path(str(FOLDER / name), run_name="__main__")
        written = tmp_path / "rows.json"
        return json.loads(written.read_text()) if written.exists() else capsys.readouterr().out

    return call


def test_engine_against_the_plain_loop(run: Run, tmp_path: Path) -> None:
    options = ("--captions", 5, "--images", 4, "--plain", 2, "--json", tmp_path / "rows.json")
    row = run("scoring.py", "--model", "small", *options, "--plot", tmp_path / "engine.png")
    assert row["units"] == 4 * (4 + 16)
    assert row["plain_over_engine"] > 0
    assert row["theory"] > 1
    assert (tmp_path / "engine.png").exists()


def test_effect_of_autocast(run: Run, tmp_path: Path) -> None:
    row = run("scoring.py", "--model", "small", "--images", 4, "--effect", "bfloat16", "--json", tmp_path / "rows.json")
    assert row["effect"].keys() == {"recall_mean", "contrastive_loss"}


def test_time_of_scores_that_know_of_the_refit(run: Run, tmp_path: Path) -> None:
    options = ("--aware", "--repeats", 1, "--json", tmp_path / "rows.json")
    row = run("scoring.py", "--model", "small", "--images", 4, *options)
    assert row["aware_over_plain"] == row["seconds"]["aware"][0] / row["seconds"]["plain"][0]


def test_scores_within_a_budget_and_by_one_of_several_ranks(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = json.loads(run("scoring.py", "--model", "small", "--images", 4, "--within", "1GiB").splitlines()[-1])
    assert found["budget"] == "1GiB"
    monkeypatch.setenv("RANK", "0")
    run("scoring.py", "--model", "small", "--images", 4, "--into", tmp_path)
    assert len(mope.ScoreTable.load(tmp_path / "0.json").scores) == 4 * (4 + 16)


def test_criteria(run: Run, tmp_path: Path) -> None:
    files = ("--json", tmp_path / "rows.json", "--plot", tmp_path / "plot.png")
    rows = run("criteria.py", "--seeds", 1, "--pairs", 8, "--test", 8, "--ratios", 0.5, *files)["rows"]
    assert {"random", "L1", "Taylor", "Fisher", "MoPE greedy"} <= {row["criterion"] for row in rows}


def test_paths(run: Run, tmp_path: Path) -> None:
    files = ("--json", tmp_path / "rows.json", "--plot", tmp_path / "plot.png")
    rows = run(
        "paths.py", "--seeds", 0, "--pairs", 8, "--test", 8, "--groups", 2, "--parts", "joint", "merged", *files
    )["rows"]
    assert {"joint", "merged", "L1", "Fisher, gates"} <= {row["criterion"] for row in rows}


@pytest.mark.usefixtures("_shallow")
def test_int8(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # exporters cannot follow the checks of types
    options = (
        "--shares",
        0.8,
        "--steps",
        1,
        "--scored",
        32,
        "--test",
        16,
        "--seeds",
        1,
        "--json",
        tmp_path / "rows.json",
    )
    whole, small = run("int8.py", "tiny", *options)["rows"]
    assert [row["files"] for row in (whole, small)] == ["float32", "int8, seed 0"]
    assert small["bytes"] < whole["bytes"]  # of which the graph is a good part in so small a model


SMALL = ("--pairs", 8, "--reconstruct-pairs", 12, "--test", 8, "--groups", 2, "--shares", 0.5)


def test_reconstruction(run: Run, tmp_path: Path) -> None:
    files = ("--json", tmp_path / "rows.json", "--plot", tmp_path / "plot.png")
    options = (*SMALL, "--criteria", "MoPE, aware", "Hessian", "--train", 128, *files)
    rows = run("reconstruction.py", *options, "--steps", 1, "--cost")
    assert len(rows["rows"]) == 2 * 6
    assert {row["criterion"]: row["kept"] <= 0.51 for row in rows["rows"]} == {"MoPE, aware": True, "Hessian": True}
    assert [(row["share"], row["steps"]) for row in rows["trained"]] == [(1.0, 1), (0.5, 1)]
    [cost] = rows["cost"]
    assert min(cost["compress_passes"], cost["reconstruct_passes"], cost["peak_bytes"]) > 0
    assert run("reconstruction.py", *options)["rows"] == rows["rows"]


def test_depth(run: Run, tmp_path: Path) -> None:
    options = (*SMALL, "--orders", "width, then depth", "joint", "--json", tmp_path / "rows.json")
    rows = run("depth.py", *options)["rows"]
    assert [(row["order"], row["kept"] <= 0.51) for row in rows] == [("width, then depth", True), ("joint", True)]
    assert run("depth.py", *options)["rows"] == rows


@pytest.mark.filterwarnings("ignore:.*has no weights")
def test_reconstruction_of_a_users_model_and_data(run: Run, tmp_path: Path) -> None:
    lines = ["filepath\ttitle"]
    for number, (pixels, caption) in enumerate(mope.emoji_scenes("calibration", 30)):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        lines.append(f"{number}.png\t{caption}")
    (tmp_path / "pairs.tsv").write_text("\n".join(lines))
    data = ("--model", "words", "--data", tmp_path / "pairs.tsv", "--json", tmp_path / "rows.json")
    rows = run("reconstruction.py", *SMALL, *data, "--criteria", "MoPE, aware", "L1", "--refits", "none", "stream")[
        "rows"
    ]
    assert [(row["criterion"], row["refit"]) for row in rows] == [
        (name, refit) for name in ("MoPE, aware", "L1") for refit in ("none", "stream")
    ]
