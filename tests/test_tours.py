"""The examples in their offline form: scripts of four families, and the notebook."""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path

import matplotlib as mpl
import pytest
import torch

import torch_pruning_mope as mope

from .unit.checkpoint.cases import register

EXAMPLES = Path(__file__).parent.parent / "examples"
STAGES = ["dense", "pruned", "distilled"]


@pytest.fixture(autouse=True)
def _apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the examples add to open_clip's configurations is gone afterwards; they import from their own folder."""
    register(tmp_path, monkeypatch)
    monkeypatch.syspath_prepend(str(EXAMPLES))


def run(script: str, *arguments: object) -> None:
    sys.argv[1:] = [str(argument) for argument in arguments]
    runpy.run_path(str(EXAMPLES / script), run_name="__main__")


def check(out: str) -> None:
    """One line for each stage, smaller after pruning, and a checkpoint that is what was saved."""
    rows = re.findall(r"^(\w+) +([\d.]+) M parameters", out, re.MULTILINE)
    assert [stage for stage, _ in rows] == STAGES
    dense, pruned, distilled = (float(parameters) for _, parameters in rows)
    assert dense > pruned == distilled


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("script", ["openai_clip.py", "siglip2.py"])
def test_halving_clip_and_siglip(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["example"])
    run(script, "--offline", "--output", tmp_path)
    out = capsys.readouterr().out
    check(out)
    assert "loaded again it is the same: True" in out
    assert mope.load(tmp_path / "distilled").model is not None


@pytest.mark.filterwarnings("ignore")
def test_mobileclip_to_a_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["example"])
    run("mobileclip.py", "--offline", "--output", tmp_path)
    check(capsys.readouterr().out)
    assert {"image.pt2", "text.pt2"} <= {file.name for file in (tmp_path / "program").iterdir()}
    assert mope.load(tmp_path / "distilled").model is not None


@pytest.mark.filterwarnings("ignore")
def test_a_model_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["example"])
    run("bring_your_own.py", "--steps", 2, "--pairs", 16, "--groups", 2, "--output", tmp_path)
    out = capsys.readouterr().out
    check(out)
    assert "loaded again it is the same: True" in out


def test_ones_own_attention_is_swapped_for_an_equal_one() -> None:
    namespace = runpy.run_path(str(EXAMPLES / "bring_your_own.py"))
    attention = namespace["OwnAttention"]()
    x = torch.randn(2, 5, namespace["WIDTH"])
    torch.testing.assert_close(namespace["convert"](attention)(x), attention(x))


def test_online_needs_pairs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["example"])
    with pytest.raises(SystemExit):
        run("siglip2.py", "--online")
    assert "--online needs --pairs, the images and captions to score, train and test on" in capsys.readouterr().err


@pytest.mark.usefixtures("_shallow")
@pytest.mark.filterwarnings("ignore")
def test_the_notebook(capsys: pytest.CaptureFixture[str]) -> None:
    """Its cells in order, on fewer pairs."""
    cells = json.loads((EXAMPLES / "tour.ipynb").read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    sizes = [number for number, source in enumerate(sources) if source.startswith("CALIBRATION, TEST,")]
    assert len(sizes) == 1
    sources[sizes[0]] = "CALIBRATION, TEST, TRAIN, STEPS, GROUPS = 8, 24, 32, 2, 1"
    namespace: dict[str, object] = {}
    with mpl.rc_context({"backend": "Agg"}):
        for number, source in enumerate(sources):
            exec(compile(source, f"tour.ipynb, cell {number}", "exec"), namespace)
        mpl.pyplot.close("all")
    out = capsys.readouterr().out
    assert "loaded again, to the bit: True" in out
    assert "image.onnx" in out
    assert [row["stage"] for row in namespace["rows"]] == STAGES  # type: ignore[attr-defined]


def test_the_notebook_shows_a_real_run() -> None:
    """Outputs are there, without errors and without paths of the machine that it ran on."""
    text = (EXAMPLES / "tour.ipynb").read_text(encoding="utf-8")
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 4
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    assert len(text) < 600_000
    assert "/tmp" not in re.sub(r'"image/png": "[^"]*"', "", text)
