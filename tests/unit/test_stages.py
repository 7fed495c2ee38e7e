"""The two stages, and that they go on where they stopped."""

from pathlib import Path
from typing import Any

import pytest
import torch

import torch_pruning_mope as mope
from tests.unit.models import clip, pairs_for

TRAINING: dict[str, Any] = {"steps": 4, "batch_size": 8, "learning_rate": 1e-3, "save_every": 2, "progress": False}
STAGES = {"pretrain": mope.pretrain_stage, "finetune": mope.finetune_stage}


@pytest.fixture
def data() -> dict[str, Any]:
    return {"calibration": pairs_for(clip(), 12), "train": pairs_for(clip(), 24, seed=1)}


def run(stage: str, path: Path, data: dict[str, Any], **more: Any) -> mope.DualEncoder:
    arguments = {"width": "75%", "parameters": "55%", "groups": 4, **TRAINING, **more}
    student = STAGES[stage](clip(), **data, path=path, **arguments)
    assert isinstance(student, mope.DualEncoder)
    return student


def weights(encoder: mope.DualEncoder) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in encoder.model.parameters()])


@pytest.mark.parametrize("stage", STAGES)
def test_stages_meet_their_budget(stage: str, tmp_path: Path, data: dict[str, Any]) -> None:
    student = run(stage, tmp_path, data)
    whole, left = mope.footprints(mope.DualEncoder(clip())), mope.footprints(student)
    assert sum(f.parameters for f in left.values()) <= 0.55 * sum(f.parameters for f in whole.values())
    assert len(student.image.blocks) + len(student.text.blocks) < 5
    names = {path.name for path in tmp_path.iterdir()}
    assert {"width.json", "width-plan.json", "depth.json", "depth-plan.json"} <= names
    assert student.embed("image", data["train"].images).isfinite().all()


@pytest.mark.parametrize(
    ("stage", "at"), [("pretrain", "make_plan"), ("pretrain", "distil"), ("finetune", "score"), ("finetune", "distil")]
)
def test_stages_go_on_where_they_stopped(
    stage: str, at: str, tmp_path: Path, data: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run(stage, tmp_path / "whole", data)
    original, calls = getattr(mope.stages, at), []

    def dies(*args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        if len(calls) == (1 if (stage, at) == ("pretrain", "distil") else 2):
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(mope.stages, at, dies)
        with pytest.raises(KeyboardInterrupt):
            run(stage, tmp_path / "parts", data)
    assert torch.equal(weights(run(stage, tmp_path / "parts", data)), weights(expected))


def test_width_alone(tmp_path: Path, data: dict[str, Any]) -> None:
    student = run("pretrain", tmp_path, data, parameters=None, width={"image": "70%"})
    assert len(student.image.blocks) == 3
    assert student.removed["text.neurons"] == [0, 0]
    assert sum(student.removed["image.neurons"]) + sum(student.removed["image.heads"]) > 0
