"""Which configurations wrap; and the command that says so. All 144 are looked at by ``mope models --json``."""

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
from typer.testing import CliRunner

import torch_pruning_mope as mope
from torch_pruning_mope.cli import app

ONE_OF_EACH = ["RN50", "ViT-B-16-SigLIP2", "MobileCLIP2-S0"]


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_configurations_wrap(name: str) -> None:
    check = mope.check_model(name)
    assert check.wraps, check.reason
    assert (check.name, check.reason) == (name, "")
    assert check.neurons > 1000
    assert check.width > 0


def test_counts_are_those_of_the_whole_model() -> None:
    """The depth is cut only after counting: 12 + 12 layers of 6 and 6 heads, 1536 and 1536 neurons."""
    check = mope.check_model("ViT-S-32")
    assert check.wraps, check.reason
    assert (check.heads, check.neurons, check.width) == (12 * 6 + 12 * 6, 12 * 1536 + 12 * 1536, 384 + 384)


def test_texts_of_hugging_face_are_checked_in_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    check = mope.check_model("mt5-base-ViT-B-32")
    assert check.wraps, check.reason
    assert check.reason.startswith("text encoder checked with two layers")


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match=r"name must be one of open_clip\.list_models\(\); found 'ViT-Z'"):
        mope.check_model("ViT-Z")


@pytest.mark.parametrize("error", [mope.errors.UnsupportedModelError("no such\n  layers"), RuntimeError("shapes")])
def test_a_refusal_is_a_row_with_the_reason(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(_model: Any) -> None:
        raise error

    monkeypatch.setattr("torch_pruning_mope.evaluation._models.DualEncoder", refuses)
    check = next(mope.evaluation.check_models(["ViT-S-32"]))
    assert not check.wraps
    assert check.reason in {"no such layers", "RuntimeError: shapes"}


def test_all_configurations_are_asked_for_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "torch_pruning_mope.evaluation._models.check_model", lambda name: mope.evaluation.ModelCheck(name, True)
    )
    assert [check.name for check in mope.evaluation.check_models()] == open_clip.list_models()


def test_the_sweep_on_record_is_of_this_version() -> None:
    """The goal is 95 %."""
    file = Path(__file__).parents[3] / "benchmarks/figures/models.json"
    rows = json.loads(file.read_text(encoding="utf-8"))
    if {row["name"] for row in rows} != set(open_clip.list_models()):
        pytest.skip("recorded with another version of open_clip")
    assert sum(row["wraps"] for row in rows) >= 0.95 * len(rows)
    assert all(row.keys() >= {"name", "wraps", "reason"} for row in rows)


def test_the_command_prints_families_and_writes_rows(tmp_path: Path) -> None:
    families = CliRunner().invoke(app, ["models"])
    assert families.exit_code == 0
    assert "SigLIP" in families.output
    file = tmp_path / "models.json"
    found = CliRunner().invoke(app, ["models", "ViT-S-32", "--json", str(file)])
    assert found.exit_code == 0, found.output
    assert "ViT-S-32: wraps\n1 of 1 wrap." in found.output
    assert json.loads(file.read_text())[0]["wraps"] is True
    unknown = CliRunner().invoke(app, ["models", "ViT-Z"])
    assert unknown.exit_code == 2
    assert "Traceback" not in unknown.output
