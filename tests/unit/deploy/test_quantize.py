"""int8 files: their layers, their gate, and what is refused."""

import json
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
from torch import nn

import torch_pruning_mope as mope
from tests.asserts import unchanged
from tests.unit.models import clip, pairs_for
from torch_pruning_mope import Pairs, load_exported
from torch_pruning_mope.deploy import _gate, shipped_latencies
from torch_pruning_mope.deploy._gate import Measured, measure
from torch_pruning_mope.deploy._programs import onnx_runner, write_onnx
from torch_pruning_mope.deploy._quantize import halve_onnx, quantize_onnx
from torch_pruning_mope.errors import ExportError


@pytest.fixture(autouse=True)
def unchecked_types(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # exporters cannot follow the checks of types


@pytest.fixture(scope="module")
def pairs() -> tuple[Pairs, Pairs]:
    return mope.emoji_pairs("calibration", 64), mope.emoji_pairs("test", 200)


@pytest.fixture(scope="module")
def exported(pairs: tuple[Pairs, Pairs], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """int8 files of the tiny CLIP."""
    folder = tmp_path_factory.mktemp("exported")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jaxtyping.config, "jaxtyping_disable", True)
        mope.export(mope.load_model("tiny"), folder, quantize="int8", pairs=pairs[0], test_pairs=pairs[1])
    return folder


def test_int8_is_small_and_embeds_nearly_as_float(exported: Path, pairs: tuple[Pairs, Pairs]) -> None:
    small, model = load_exported(exported), mope.load_tiny_clip()
    size = sum((exported / f"{tower}.onnx").stat().st_size for tower in ("image", "text"))
    assert size <= 0.37 * 4 * sum(parameter.numel() for parameter in model.parameters())
    for embed, inputs in (("encode_image", pairs[1].images[:64]), ("encode_text", pairs[1].tokens[:64])):
        with torch.no_grad():
            ours, theirs = getattr(small, embed)(inputs.numpy()), getattr(model, embed)(inputs).numpy()
        cosine = (ours * theirs).sum(-1) / np.linalg.norm(ours, axis=-1) / np.linalg.norm(theirs, axis=-1)
        assert cosine.min() > 0.99


def test_scales_are_static(exported: Path) -> None:
    """Dynamic quantisation measures each input anew, and is known for bad embeddings."""
    import onnx

    for tower in ("image", "text"):
        graph = onnx.load(exported / f"{tower}.onnx").graph
        kinds = {node.op_type for node in graph.node}
        assert {"QuantizeLinear", "DequantizeLinear"} <= kinds
        assert not {kind for kind in kinds if "Dynamic" in kind or kind == "MatMulInteger"}
        constants = {tensor.name for tensor in graph.initializer}
        assert all(node.input[1] in constants for node in graph.node if node.op_type == "QuantizeLinear")


def test_folded_models_compose_with_torchao(pairs: tuple[Pairs, Pairs]) -> None:
    """The recipe for those who stay in PyTorch."""
    torchao = pytest.importorskip("torchao.quantization")
    model, test = mope.load_tiny_clip(), pairs[1]
    folded = mope.fold(model)
    torchao.quantize_(folded, torchao.Int8WeightOnlyConfig())
    with torch.no_grad():
        for embed, inputs in (("encode_image", test.images[:32]), ("encode_text", test.tokens[:32])):
            found, expected = (getattr(each, embed)(inputs) for each in (folded, model))
            assert not torch.equal(found, expected)
            assert torch.nn.functional.cosine_similarity(found, expected).min() > 0.995


def test_what_was_measured_is_on_record(exported: Path) -> None:
    about = json.loads((exported / "deployment.json").read_text())["quantization"]
    measured, layers = about["measured"], about["layers"]
    assert measured["pairs"] == 200
    assert measured["recall_float"] - measured["recall"] <= measured["max_drop"] == 1.0
    assert measured["recall"] > 95
    assert min(measured["cosine"].values()) > 0.995
    assert (
        len(layers["image"]["int8"]) == 6 * 4 + 3
    )  # two in place of one where the last layer narrows; patches, the joint
    assert all(0 < error <= about["error_bound"] for tower in layers.values() for error in tower["int8"].values())


class Two(nn.Module):
    """Two products, of which the second gets one input a thousand times as large as the others."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False)
        with torch.no_grad():
            self.second.weight[:, 0] = 0.0

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.first(inputs)
        return self.second(torch.cat([1000 * hidden[:, :1], hidden[:, 1:]], -1))


def test_layers_that_int8_harms_stay_in_float(tmp_path: Path) -> None:
    inputs, path = torch.randn(64, 16), tmp_path / "two.onnx"
    run = write_onnx(Two(), inputs[:2], path, None)  # type: ignore[arg-type]
    found = quantize_onnx(path, inputs)
    assert len(found.int8) == len(found.kept_in_float) == 1
    assert max(found.int8.values()) < 0.02
    assert min(found.kept_in_float.values()) > 0.3
    difference = onnx_runner(path)(inputs) - run(inputs)
    assert 0 < float(difference.norm() / run(inputs).norm()) < 0.03
    assert [file.name for file in tmp_path.iterdir()] == ["two.onnx"]


def test_files_that_lose_too_much_are_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = clip(vision={"layers": 1}, text={"layers": 1})
    calibration, test = pairs_for(model, 8), pairs_for(model, 8, seed=1)
    options: dict[str, Any] = {"quantize": "int8", "pairs": calibration, "test_pairs": test}
    monkeypatch.setattr(_gate, "measure", lambda *_: Measured(40, 90.0, 87.5, {}))
    with pytest.raises(ExportError, match=r"at most 2 points of mean R@1; found 90\.00 before and 87\.50 after, on 40"):
        mope.export(model, tmp_path / "new", max_drop=2.0, **options)
    assert not (tmp_path / "new").exists()


def test_recall_is_measured_on_the_files(pairs: tuple[Pairs, Pairs]) -> None:
    model, test = mope.load_tiny_clip(), pairs[1]
    whole: Any = {"image": torch.no_grad()(model.encode_image), "text": torch.no_grad()(model.encode_text)}
    noise: Any = {"image": lambda images: torch.randn(len(images), 128), "text": whole["text"]}
    found = measure(whole, noise, test)
    result = mope.evaluate_retrieval(model, test, ks=(1,), progress=False).to_dict()
    assert found.recall_float == pytest.approx(sum(result[f"{way}_r1"] for way in ("i2t", "t2i")) / 2)
    assert found.recall < 5
    assert found.cosine["text"] == pytest.approx(1)
    assert abs(found.cosine["image"]) < 0.2


def test_half_precision_takes_half_the_bytes(pairs: tuple[Pairs, Pairs], tmp_path: Path) -> None:
    model = clip(vision={"layers": 1}, text={"layers": 1})
    test = pairs_for(model, 8)
    whole = mope.export(model, tmp_path / "whole")
    half = mope.export(model, tmp_path / "half", quantize="fp16", test_pairs=test)
    sizes = [sum(file.stat().st_size for file in files if file.suffix == ".onnx") for files in (whole, half)]
    assert sizes[1] < 0.8 * sizes[0]  # the graph is a good part of so small a model
    expected, found = (
        load_exported(folder).encode_image(test.images.numpy()) for folder in (whole[0].parent, half[0].parent)
    )
    assert found.dtype == np.float32
    assert 0 < np.abs(found - expected).max() < 5e-3 * np.abs(expected).max()
    about = json.loads((half[0].parent / "deployment.json").read_text())["quantization"]
    assert about["type"] == "fp16"
    assert about["measured"]["pairs"] == 8


@pytest.mark.parametrize("quantize", ["int8", "fp16"])
def test_weights_beside_the_file_stay_in_one_whole(quantize: str, tmp_path: Path) -> None:
    """As exporters write models of over 2 GB."""
    import onnx

    inputs, path = torch.randn(64, 16), tmp_path / "two.onnx"
    expected = write_onnx(Two().eval(), inputs, path, None)(inputs)
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="two.onnx.data", size_threshold=256)
    assert (tmp_path / "two.onnx.data").exists()
    if quantize == "fp16":
        halve_onnx(path)
    else:
        quantize_onnx(path, inputs)
    difference = onnx_runner(path)(inputs) - expected
    assert 0 < float(difference.norm() / expected.norm()) < 0.03
    assert {file.name for file in tmp_path.iterdir()} <= {"two.onnx", "two.onnx.data"}


def test_the_shipped_form_is_timed(pairs: tuple[Pairs, Pairs]) -> None:
    encoder = mope.DualEncoder(clip(vision={"layers": 1}, text={"layers": 1}))
    with unchanged(encoder.model):
        found = shipped_latencies(encoder, batch_size=2, threads=1, repeats=2)
    assert set(found) == {"image", "text"}
    assert min(found.values()) > 0
    with pytest.raises(ValueError, match="must come with calibration pairs"):
        shipped_latencies(encoder, quantize="int8")


def test_arguments(pairs: tuple[Pairs, Pairs], tmp_path: Path) -> None:
    model = mope.load_tiny_clip()
    cases: list[tuple[dict[str, Any], str]] = [
        ({"quantize": "int4", "pairs": pairs[0]}, "quantize must be None or one of int8, fp16; found 'int4'"),
        ({"quantize": "int8"}, "must come with calibration pairs; found none"),
        ({"quantize": "int8", "pairs": pairs[0], "format": "torch"}, "must come with format='onnx'; found 'torch'"),
        ({"quantize": "int8", "pairs": pairs[0], "test_pairs": pairs[0]}, "found 64 images in both"),
        (
            {"quantize": "int8", "pairs": Pairs(pairs[0].images, pairs[0].tokens[:, :9])},
            r"pairs must hold tokens of shape \[24\], which the exported text encoder takes; found \[9\]",
        ),
        (
            {"quantize": "int8", "pairs": pairs[0], "test_pairs": Pairs(pairs[1].images[..., 1:], pairs[1].tokens)},
            r"test_pairs must hold images of shape \[3, 64, 64\]",
        ),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            mope.export(model, tmp_path / "new", **options)
        assert not (tmp_path / "new").exists()
