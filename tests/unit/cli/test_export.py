"""``mope export --quantize int8``, and ``mope evaluate`` of exported files."""

import json
from pathlib import Path

import jaxtyping
import pytest

from .commands import PAIRS, mope_command


def test_int8_of_a_run_and_its_row(begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # exporters cannot follow the checks of types
    mope_command("export", begun, "--quantize", "int8", "--max-drop", 50, "--pairs", 40)
    about = json.loads((begun / "export-onnx" / "deployment.json").read_text())["quantization"]
    assert (about["measured"]["pairs"], about["calibration_images"]) == (40, 256)
    mope_command("evaluate", begun, *PAIRS)
    rows = json.loads((begun / "evaluation.json").read_text())["rows"]
    assert [row["stage"] for row in rows] == ["dense", "pruned", "shipped"]
    assert rows[2]["bytes"] == sum(
        (begun / "export-onnx" / f"{tower}.onnx").stat().st_size for tower in ("image", "text")
    )
    assert rows[2]["parameters"] == rows[1]["parameters"]
    assert rows[2]["latency_ms"] > 0
    assert abs(rows[2]["i2t_r1"] - rows[1]["i2t_r1"]) <= 10
    mope_command("evaluate", "--model", begun / "export-onnx", *PAIRS, "--json", tmp_path / "rows.json")
    (alone,) = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert {**alone, "latency_ms": 0, "model": "", "criterion": ""} == {
        **rows[2], "latency_ms": 0, "model": "", "criterion": ""
    }  # fmt: skip
