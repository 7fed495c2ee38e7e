"""Benchmarks and examples that no other test runs, on small models: seconds each."""

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageFont

from .unit.checkpoint.cases import register

ROOT = Path(__file__).parent.parent
CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "patch_size": 8, "head_width": 8},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 24, "heads": 4, "layers": 2},
}
Run = Callable[..., None]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Runs a script as a user would; ``small`` is a model of open_clip."""
    register(tmp_path, monkeypatch, small=CONFIG)

    def call(script: str, *arguments: object) -> None:
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        runpy.run_path(str(ROOT / script), run_name="__main__")

    return call


@pytest.mark.filterwarnings("ignore")
def test_checkpoints(run: Run, tmp_path: Path) -> None:
    run("benchmarks/checkpoints.py", "--model", "small", "--repeats", 1, "--json", tmp_path / "rows.json")
    (row,) = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert row["parameters"] < row["parameters_before"]
    assert row["bytes"] < row["bytes_whole_checkpoint"]
    assert row["seconds"].keys() == {"open_clip", "least", "whole", "pruned"}


@pytest.mark.filterwarnings("ignore")
def test_latency(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._inductor.config as inductor

    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    files = ("--json", tmp_path / "row.json", "--plot", tmp_path / "plot.png")
    with inductor.patch(freezing=False):  # the script sets it; monkeypatch would delete it
        run("benchmarks/latency.py", "--model", "small", "--forms", "eager", "--seconds", 0, "--round-to", 4, *files)
    row = json.loads((tmp_path / "row.json").read_text())
    assert 0 < row["macs_ratio"] < 1
    assert {(cell["tower"], cell["batch"], cell["model"]) for cell in row["cells"]} == {
        (tower, batch, model) for tower in ("image", "text") for batch in (1, 32) for model in ("original", "pruned")
    }
    assert (tmp_path / "plot.png").exists()


def test_latency_of_the_swap(run: Run, tmp_path: Path) -> None:
    run(
        "benchmarks/latency_swap.py",
        "--model",
        "small",
        "--layers",
        1,
        "--repeats",
        2,
        "--json",
        tmp_path / "rows.json",
    )
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["tower"] for row in rows] == ["image", "text"]
    assert all(row["ratio"] > 0 for row in rows)


@pytest.mark.filterwarnings("ignore")
def test_families() -> None:
    row: Any = runpy.run_path(str(ROOT / "benchmarks/families.py"))["row"]("open_clip ViT")
    recorded = json.loads((ROOT / "torch_pruning_mope/data/assets/families.json").read_text())
    assert row.keys() == recorded[0].keys()
    assert row["engine = plain loop"] < 1e-5


def test_sprites(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        "# group: Smileys & Emotion",
        "0041 ; fully-qualified # A E1.0 letter of another group",
        "# group: Objects",
        "0042 ; fully-qualified # B E1.0 letter",
        "0043 ; fully-qualified # C E1.0 ten-thirty",
        "0044 0045 ; fully-qualified # D E1.0 two letters",
    ]
    (tmp_path / "emoji-test.txt").write_text("\n".join(lines))
    font = ImageFont.load_default(109)
    monkeypatch.setattr(ImageFont, "truetype", lambda *_: font)
    run(
        "examples/render_emoji_sprites.py",
        *("--font", "none.ttf", "--emoji-test", tmp_path / "emoji-test.txt", "--out", tmp_path / "out"),
    )
    assert (tmp_path / "out" / "concepts.tsv").read_text() == "code_point\tgroup\tname\n0042\tObjects\tletter\n"
    assert Image.open(tmp_path / "out" / "sprites.png").getbbox() is not None
