"""What is written for other runtimes embeds as the model does."""

import json
from pathlib import Path

import jaxtyping
import pytest
import torch

from tests.asserts import assert_close, unchanged
from tests.unit import zoo
from tests.unit.deploy.test_fold import pruned
from tests.unit.models import clip
from torch_pruning_mope.deploy import export


@pytest.fixture(autouse=True)
def unchecked_types(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # exporters cannot follow the checks of types


def test_onnx(tmp_path: Path) -> None:
    import onnxruntime

    encoder = pruned(clip())
    pairs = zoo.pairs_of(encoder, 5)
    with unchanged(encoder.model):
        files = export(encoder, tmp_path / "deployed", format="onnx")
    assert sorted(path.name for path in files) == ["deployment.json", "image.onnx", "text.onnx"]
    assert sorted((tmp_path / "deployed").iterdir()) == sorted(files)
    for tower, inputs in (("image", pairs.images), ("text", pairs.tokens)):
        session = onnxruntime.InferenceSession(tmp_path / "deployed" / f"{tower}.onnx")
        for count in (1, 5):
            (found,) = session.run(["embeddings"], {"inputs": inputs[:count].numpy()})
            with torch.no_grad():
                assert_close(torch.from_numpy(found), encoder.embed(tower, inputs[:count]), 1e-5)  # type: ignore[arg-type]
    about = json.loads((tmp_path / "deployed" / "deployment.json").read_text())
    assert about["context_length"] == 9
    assert about["vocabulary"] == 50
    assert about["logit_scale"] == pytest.approx(encoder.logit_scale.item())  # type: ignore[union-attr]
