"""The training script takes a few steps with either architecture."""

import importlib
import json
import runpy
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

SCRIPT = Path(__file__).parent.parent / "examples" / "train_tiny_clip.py"


@pytest.mark.parametrize(("architecture", "parameters"), [("clip", 3_774_849), ("siglip", 4_202_754)])
def test_a_few_steps(
    architecture: str,
    parameters: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "weights.safetensors"
    options = [
        "--architecture",
        architecture,
        "--steps",
        "2",
        "--batch-size",
        "4",
        "--test-size",
        "20",
        "--threads",
        "1",
    ]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *options, "--out", str(out)])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["steps"] == 2
    assert 0 <= figures["recall_mean"] <= 100
    assert sum(tensor.numel() for tensor in load_file(out).values()) == parameters
    if architecture == "siglip":
        monkeypatch.syspath_prepend(str(SCRIPT.parent.parent / "benchmarks"))
        dense = importlib.import_module("reconstruction").tiny_siglip(out)
        assert sum(parameter.numel() for parameter in dense.model.parameters()) == parameters
        assert not dense.unprunable
