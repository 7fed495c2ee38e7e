"""What is written for other runtimes embeds as the model does."""

import copy
import json
import sys
from pathlib import Path
from typing import Any

import jaxtyping
import open_clip
import pytest
import torch
from torch import Tensor

import torch_pruning_mope as mope
from tests.asserts import assert_close, unchanged
from tests.unit import zoo
from tests.unit.deploy.test_fold import embeddings, pruned
from tests.unit.models import clip
from torch_pruning_mope import DualEncoder
from torch_pruning_mope.deploy import _export, export
from torch_pruning_mope.deploy._programs import write_executorch
from torch_pruning_mope.errors import ExportError, ModelLoadError
from torch_pruning_mope.towers import Unit


@pytest.fixture(autouse=True)
def unchecked_types(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # exporters cannot follow the checks of types


def narrower(model: Any, *, layers: bool = True) -> DualEncoder:
    """Half of the neurons of every MLP gone, others in each, and the first layer of the image tower."""
    encoder = DualEncoder(model)
    units = []
    for layer in encoder.layers:
        part = layer.block.feed_forward
        if part is not None:
            gone = range(layer.index % 2, part.num_units, 2)
            units.append(Unit("neurons", layer.tower, layer.index, 0, tuple(gone)))
    if layers:
        units.append(Unit("block", "image", 0, 0))
    mope.remove_units(encoder, units)
    return encoder


def inputs_of(encoder: DualEncoder, tower: str, count: int) -> Tensor:
    pairs = zoo.pairs_of(encoder, count + 1)
    return (pairs.images if tower == "image" else pairs.tokens)[:count]


def test_onnx(tmp_path: Path) -> None:
    import onnxruntime

    encoder, folder = pruned(clip(vision={"layers": 2})), tmp_path / "deployed"
    with unchanged(encoder.model):
        files = export(encoder, folder)
    assert sorted(path.name for path in files) == ["deployment.json", "image.onnx", "text.onnx"]
    assert sorted(folder.iterdir()) == sorted(files)
    for tower in ("image", "text"):
        session = onnxruntime.InferenceSession(folder / f"{tower}.onnx")
        for count in (1, 5):
            inputs = inputs_of(encoder, tower, count)
            (found,) = session.run(["embeddings"], {"inputs": inputs.numpy()})
            with torch.no_grad():
                assert_close(torch.from_numpy(found), encoder.embed(tower, inputs), 1e-5)  # type: ignore[arg-type]
    about = json.loads((folder / "deployment.json").read_text())
    assert (about["context_length"], about["vocabulary"], about["image"]) == (9, 50, [3, 24, 24])
    assert about["quantization"] is None
    assert about["logit_scale"] == pytest.approx(encoder.model.logit_scale.exp().item())


def test_torch_programs_hold_the_weights_of_their_encoder_alone(tmp_path: Path) -> None:
    encoder = pruned(clip())
    export(encoder.model, tmp_path, format="torch")
    for tower in ("image", "text"):
        program = torch.export.load(tmp_path / f"{tower}.pt2")
        inputs = inputs_of(encoder, tower, 5)
        with torch.no_grad():
            assert_close(program.module()(inputs), encoder.embed(tower, inputs), 1e-5)  # type: ignore[arg-type]
        held = sum(tensor.numel() for tensor in program.state_dict.values())
        assert held < 0.9 * sum(parameter.numel() for parameter in encoder.model.parameters())


def test_executorch_programs_embed_as_the_model_does(tmp_path: Path) -> None:
    pytest.importorskip("executorch.runtime", reason="of another torch", exc_type=ImportError)
    encoder = pruned(clip(vision={"layers": 1, "image_size": 16}, text={"layers": 1}))
    files = export(encoder, tmp_path, format="executorch")
    assert sorted(path.name for path in files) == ["deployment.json", "image.pte", "text.pte"]
    shipped = mope.load_model(str(tmp_path)).model
    for tower, embed in (("image", shipped.encode_image), ("text", shipped.encode_text)):
        inputs = inputs_of(encoder, tower, 2)
        with torch.no_grad():
            assert_close(embed(inputs), encoder.embed(tower, inputs), 1e-5)  # type: ignore[operator,arg-type]
    (tmp_path / "image.pte").write_bytes(b"no program")
    with pytest.raises(ModelLoadError, match=r"image\.pte must be the file that deployment\.json lists"):
        mope.load_exported(tmp_path)


def test_executorch_keeps_the_approximate_gelu(tmp_path: Path) -> None:
    pytest.importorskip("executorch.runtime", reason="of another torch", exc_type=ImportError)
    gelu: Any = torch.nn.GELU("tanh")
    inputs = torch.linspace(-4, 4, 33)[None]
    found = write_executorch(gelu, inputs, tmp_path / "gelu.pte", None)(inputs)
    assert_close(found, gelu(inputs), 1e-6)
    assert (gelu(inputs) - torch.nn.functional.gelu(inputs)).abs().max() > 1e-4  # what XNNPACK would do


def test_executorch_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "executorch.runtime", None)
    with pytest.raises(ExportError, match=r"goes with torch 2.*pip install torch-pruning-mope\[executorch\]"):
        export(DualEncoder(clip()), tmp_path / "new", format="executorch")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("family", ["EVA02", "transformers SigLIP"])
def test_onnx_of_families(family: str, tmp_path: Path) -> None:
    files = export(pruned(zoo.build(family)), tmp_path)  # which checks them
    assert len(files) == 3


@pytest.mark.parametrize(
    "family", ["open_clip ViT", "open_clip qk_norm", "open_clip scale_heads", "open_clip inner norms", "CustomTextCLIP"]
)
def test_open_clip_loads_its_stock_form(family: str, tmp_path: Path) -> None:
    custom = {"kind": open_clip.CustomTextCLIP, "init_logit_bias": -3.0}
    options = {
        "vision": {"ls_init_value": 0.3, "pool_type": "avg", "no_ln_pre": True, "final_ln_after_pool": True},
        "text": {"pool_type": "last", "no_causal_mask": True, "proj_bias": True, "norm_kwargs": {"eps": 1e-3}},
        "quick_gelu": True,
    }
    model = clip(**custom, **options) if family == "CustomTextCLIP" else zoo.build(family)  # type: ignore[arg-type]
    layers = family in {"open_clip ViT", "CustomTextCLIP"}
    encoder = narrower(model, layers=layers)
    encoder.model.visual.preprocess_cfg = {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.5, 0.5)}
    with unchanged(encoder.model):
        export(encoder, tmp_path, format="open_clip")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["open_clip_config.json", "open_clip_model.safetensors"]
    loaded, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{tmp_path}")
    assert type(loaded) is type(encoder.model)
    pairs = zoo.pairs_of(encoder)
    for tower, expected in embeddings(encoder.model, pairs).items():
        assert_close(embeddings(loaded.eval(), pairs)[tower], expected, 1e-5)
    assert torch.equal(loaded.logit_scale, encoder.model.logit_scale)
    assert (loaded.logit_bias is None) == (encoder.model.logit_bias is None)
    assert tuple(preprocess.transforms[-1].mean) == (0.1, 0.2, 0.3)


@pytest.mark.parametrize("family", ["transformers CLIP", "transformers SigLIP", "transformers Chinese-CLIP"])
def test_transformers_loads_its_stock_form(family: str, tmp_path: Path) -> None:
    import transformers

    encoder = narrower(zoo.build(family))
    export(encoder, tmp_path, format="transformers")
    loaded = transformers.AutoModel.from_pretrained(tmp_path)
    assert loaded.config.vision_config.num_hidden_layers == 1
    assert loaded.config.vision_config.intermediate_size == 28
    pairs = zoo.pairs_of(encoder)
    for tower, expected in embeddings(encoder.model, pairs).items():
        assert_close(embeddings(loaded.eval(), pairs)[tower], expected, 1e-5)


HEADS = Unit("head", "text", 1, 0, tuple(range(12)))
ALL_HEADS = [HEADS, Unit("head", "text", 0, 0, tuple(range(12)))]
NEURONS = [Unit("neurons", "image", 2, 0, (0, 1, 2)), Unit("neurons", "image", 1, 0, (5,))]


@pytest.mark.parametrize(
    ("family", "units", "form", "message"),
    [
        (
            "open_clip ViT",
            [HEADS],
            "open_clip",
            "heads in each layer; found 3 in most layers of the text tower, and 2",
        ),
        ("open_clip ViT", NEURONS, "open_clip", "neurons in each layer; found 56 .* and 55 in layer 1, 53 in layer 2"),
        ("open_clip ViT", ALL_HEADS, "open_clip", "found 2 heads of 12 channels in the text tower, whose width is 36"),
        ("transformers CLIP", ALL_HEADS, "transformers", "found 2 heads of 12 channels in the text tower"),
        ("SigLIP", [], "open_clip", "own ViT .*; found CustomTextCLIP, TimmModel"),
        ("open_clip ViT", [], "transformers", "is for models of transformers; found CLIP"),
        ("transformers CLIP", [], "open_clip", "found CLIPModel"),
    ],
)
def test_what_stock_models_cannot_express_is_refused(
    family: str, units: list[Unit], form: Any, message: str, tmp_path: Path
) -> None:
    encoder = DualEncoder(zoo.build(family))
    mope.remove_units(encoder, units)
    with unchanged(encoder.model), pytest.raises(ExportError, match=message):
        export(encoder, tmp_path / "new", format=form)
    assert not (tmp_path / "new").exists()


def test_a_constant_number_of_inputs_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def constant(part: Any, inputs: Tensor, path: Path, _opset: object) -> Any:
        path.write_text("for two")

        def run(given: Tensor) -> Tensor:
            if given.shape != inputs.shape:
                raise RuntimeError(f"a batch of {len(inputs)} was traced")
            return part(given)  # type: ignore[no-any-return]

        return run

    monkeypatch.setitem(_export._PROGRAMS, "torch", (constant, "pt2"))
    with pytest.raises(ExportError, match=r"the image encoder refuses 1: a batch of 2 was traced"):
        export(DualEncoder(clip()), tmp_path, format="torch")
    assert not list(tmp_path.iterdir())


def test_nothing_is_put_in_place_that_embeds_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = DualEncoder(clip())
    (tmp_path / "image.pt2").write_text("what was there")

    def wrong(part: Any, inputs: Tensor, path: Path, _opset: object) -> Any:
        path.write_text("wrong")
        return lambda inputs: 1.01 * part(inputs)

    monkeypatch.setitem(_export._PROGRAMS, "torch", (wrong, "pt2"))
    with pytest.raises(ExportError, match="embeddings of the image encoder that differ by"):
        export(encoder, tmp_path, format="torch")
    assert [path.name for path in tmp_path.iterdir()] == ["image.pt2"]
    assert (tmp_path / "image.pt2").read_text() == "what was there"


def test_what_an_exporter_cannot_follow_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> Any:
        raise RuntimeError("unsupported operator")

    monkeypatch.setitem(_export._PROGRAMS, "torch", (fails, "pt2"))
    with pytest.raises(
        ExportError, match=r"image encoder must be one that torch's exporter can follow.*unsupported operator"
    ):
        export(DualEncoder(clip()), tmp_path, format="torch")
    assert not list(tmp_path.iterdir())


def test_arguments(tmp_path: Path) -> None:
    encoder = DualEncoder(clip())
    with pytest.raises(
        ValueError, match="format must be one of onnx, torch, executorch, open_clip, transformers; found 'tflite'"
    ):
        export(encoder, tmp_path, format="tflite")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="opset must be None for format 'torch'; found 18"):
        export(encoder, tmp_path, format="torch", opset=18)
    meta = DualEncoder(copy.deepcopy(encoder.model).to("meta"))
    with pytest.raises(ValueError, match="must have its weights"):
        export(meta, tmp_path)
