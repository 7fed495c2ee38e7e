"""The example script for any open_clip model, on a small one with random weights."""

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import torch_pruning_mope as mope
from torch_pruning_mope import DualEncoder, ScoreTable, emoji_scenes

from .unit.checkpoint.cases import register

SCRIPT = Path(__file__).parent.parent / "examples" / "prune_open_clip.py"
CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "patch_size": 8, "head_width": 8},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 24, "heads": 4, "layers": 2},
}
Run = Callable[..., tuple[str, str]]


@pytest.fixture(autouse=True)
def _small_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that open_clip knows by name, as if it had shipped with it."""
    register(tmp_path, monkeypatch, **{"tiny-test": CONFIG})


@pytest.fixture
def captions(tmp_path: Path) -> list[tuple[str, str]]:
    """A dozen pictures and their captions."""
    rows = []
    for index, (pixels, caption) in enumerate(emoji_scenes("calibration", 12)):
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
        rows.append((f"{index}.png", caption))
    return rows


def write_csv(path: Path, rows: list[tuple[str, str]]) -> Path:
    path.write_text("".join(f"{image}\t{caption}\n" for image, caption in [("filepath", "title"), *rows]))
    return path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the script as a user would; returns what it prints."""

    def call(*arguments: object, code: int = 0) -> tuple[str, str]:
        model = ["--model", "tiny-test", "--pretrained", "none", "--groups", "4", "--device", "cpu"]
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *model, *map(str, arguments)])
        found: object = 0
        try:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        except SystemExit as stop:
            found = stop.code
        output = capsys.readouterr()
        assert found == code, output.err
        return output.out, output.err

    return call


def test_csv_to_a_saved_model_that_loads_again(run: Run, captions: Any, tmp_path: Path) -> None:
    table = write_csv(tmp_path / "pairs.csv", captions)
    folder = tmp_path / "runs" / "out"
    out, _ = run("--csv", table, "--calibration", 8, "--head-ratio", 0.25, "--ffn-ratio", 0.5, "--output", folder)
    assert "calibration: 8 images, 8 captions, 0 images unusable" in out
    assert "test: 4 images, 4 captions" in out
    assert "removed 4 heads and 224 neurons" in out
    assert out.index("dense ") < out.index("pruned ")
    encoder = DualEncoder.from_pretrained(folder)
    assert encoder.removed == {
        "image.heads": [1, 1],
        "image.neurons": [64, 64],
        "text.heads": [1, 1],
        "text.neurons": [48, 48],
    }
    model, preprocess, tokenizer = mope.load(folder)
    assert preprocess(Image.new("RGB", (40, 30))).shape == (3, 32, 32)
    assert tokenizer(["an owl"]).shape == (1, 32)
    assert "| image to text R@1, percent |" in (folder / "README.md").read_text()
    with torch.inference_mode():
        assert torch.isfinite(model.encode_image(torch.zeros(1, 3, 32, 32))).all()
    assert len(ScoreTable.load(folder / "scores.json").of("head")) == 16


def test_coco_with_several_captions_and_unreadable_images(run: Run, captions: Any, tmp_path: Path) -> None:
    (tmp_path / "3.png").write_text("this is no picture")
    (tmp_path / "5.png").unlink()
    images = [{"id": 10 + index, "file_name": name} for index, (name, _) in enumerate(captions)]
    notes = [{"image_id": 10 + index, "caption": text} for index, (_, text) in enumerate(captions)] * 2
    (tmp_path / "captions.json").write_text(json.dumps({"images": images, "annotations": notes}))
    with pytest.warns(UserWarning, match="samples skipped") as caught:
        out, _ = run(
            *("--coco", tmp_path / "captions.json", "--images", tmp_path, "--calibration", 6, "--max-skipped", 0.5),
            *("--global", "--metric", "contrastive_loss"),
        )
    warned = " ".join(str(warning.message) for warning in caught)
    lines = [line for line in out.splitlines() if "unusable" in line]
    assert [sum(int(line.split()[at]) for line in lines) for at in (1, 3, 5)] == [10, 20, 2]
    assert f"{tmp_path / '3.png'}: none of AVIF" in warned
    assert f"{tmp_path / '5.png'}: FileNotFoundError" in warned
    assert "removed 5 heads and 224 neurons" in out


def test_a_test_file_of_its_own(run: Run, captions: Any, tmp_path: Path) -> None:
    chosen = write_csv(tmp_path / "calibration.csv", captions[:8])
    others = write_csv(tmp_path / "test.csv", captions[8:])
    out, _ = run("--csv", chosen, "--test", others)
    assert "calibration: 8 images" in out
    assert "test: 4 images" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--calibration", "1"), "--calibration must be at least 2; found 1"),
        (("--calibration", "11"), "--calibration must leave at least two images to test on; found 1 of 12 left"),
        (("--test", "pairs.csv", "--calibration", "5"), "--test must hold no calibration image; found 5 in both"),
        (("--head-ratio", "1"), "head_ratio must be in [0, 1)"),
        (("--metric", "fid"), "metric must be"),
        (("--csv-image", "url"), "must name the columns url and title"),
        (("--pretrained", "no_such_tag"), "error: "),
    ],
)
def test_bad_input_is_one_line(
    run: Run, captions: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    write_csv(tmp_path / "pairs.csv", captions)
    monkeypatch.chdir(tmp_path)
    _, err = run("--csv", "pairs.csv", "--calibration", "8", *arguments, code=2)
    assert message in err.strip().splitlines()[-1]


def test_coco_needs_its_folder(run: Run, tmp_path: Path) -> None:
    _, err = run("--coco", tmp_path / "captions.json", code=2)
    assert "--coco needs --images" in err
