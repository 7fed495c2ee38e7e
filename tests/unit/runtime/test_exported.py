"""Exported folders run without torch, and damaged or foreign ones are refused."""

import copy
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

import torch_pruning_mope as mope
from tests.conftest import make_shallow
from tests.unit.checkpoint.cases import CONFIG, clip_folder_at, register
from torch_pruning_mope import load_exported
from torch_pruning_mope.deploy._deployment import _describe_preprocessing, _write_tokenizer
from torch_pruning_mope.errors import ModelLoadError
from torch_pruning_mope.runtime import Preprocess, Tokenizer

TEXTS = [
    "an owl",
    "A red CAR's 12 wheels, isn't it?",
    "größer &amp; ²½ 猫!!",
    "x<end_of_text>y",
    "word " * 100,
    "naïve café's 3½",
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        make_shallow(patch)
        patch.setattr(jaxtyping.config, "jaxtyping_disable", True)
        mope.export(mope.load_model("tiny"), folder)
    return folder


def picture(width: int = 90, height: int = 70) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.usefixtures("_shallow")
def test_the_tiny_clip_with_its_inputs(tiny: Path) -> None:
    found, loaded = load_exported(tiny, threads=1), mope.load_model("tiny")
    images = [found.preprocess(image) for image in (picture(), picture(64, 64))]
    expected = torch.stack([loaded.preprocess(image) for image in (picture(), picture(64, 64))])
    np.testing.assert_allclose(np.stack(images), expected.numpy(), atol=1e-6)
    tokens = found.tokenizer(["a red apple", "a owl"])
    assert np.array_equal(tokens, loaded.tokenizer(["a red apple", "a owl"]).numpy())
    with torch.inference_mode():
        for ours, theirs in (
            (found.encode_image(np.stack(images)), loaded.model.encode_image(expected)),  # type: ignore[operator]
            (found.encode_text(tokens), loaded.model.encode_text(torch.from_numpy(tokens))),  # type: ignore[operator]
        ):
            np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5 * float(theirs.abs().max()))
    assert found.logit_scale == pytest.approx(float(loaded.model.logit_scale.exp()))  # type: ignore[operator,union-attr]
    assert found.tokenizer([]).shape == (0, 24)
    again = pickle.loads(pickle.dumps(copy.deepcopy(found)))
    assert np.array_equal(again.encode_text(tokens), found.encode_text(tokens))


def test_nothing_but_onnxruntime_numpy_and_pillow(tiny: Path) -> None:
    """In a process that cannot import torch, nor what comes with it."""
    code = f"""
import sys
for name in "torch open_clip transformers timm torch_pruning safetensors huggingface_hub jaxtyping tqdm".split():
    sys.modules[name] = None
from PIL import Image
import torch_pruning_mope as mope
model = mope.load_exported({str(tiny)!r})
image = model.preprocess(Image.new("RGB", (80, 60), "teal"))
assert model.encode_image(image[None]).shape == (1, 128)
assert model.encode_text(model.tokenizer("a red apple")).shape == (1, 128)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("mode", ["shortest", "squash"])
@pytest.mark.parametrize("size", [(90, 70), (31, 45), (500, 32)])
def test_pictures_are_prepared_as_by_open_clip(mode: str, size: tuple[int, int]) -> None:
    for interpolation in ("bicubic", "bilinear"):
        config = open_clip.transform.PreprocessCfg(size=32, resize_mode=mode, interpolation=interpolation)
        expected = open_clip.transform.image_transform_v2(config, is_train=False)(picture(*size)).numpy()
        described = {
            "resize": mode,
            "resize_to": 32,
            "size": [32, 32],
            "interpolation": interpolation,
            "mean": list(config.mean),
            "std": list(config.std),
        }
        np.testing.assert_allclose(Preprocess(described)(picture(*size)), expected, atol=1e-5)


@pytest.mark.parametrize("clean", ["lower", "canonicalize", "whitespace"])
def test_ids_are_those_of_open_clip(clean: str, tmp_path: Path) -> None:
    shutil.copy(open_clip.tokenizer.default_bpe(), tmp_path / "merges.txt.gz")
    described = {"kind": "bpe", "file": "merges.txt.gz", "merges": 48894, "length": 20, "clean": clean}
    expected = open_clip.tokenizer.SimpleTokenizer(context_length=20, clean=clean)(TEXTS).numpy()
    assert np.array_equal(Tokenizer(described, tmp_path)(TEXTS), expected)


def test_inputs_of_a_clip_of_open_clip_and_one_of_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(tmp_path, monkeypatch, **{"Small-8": CONFIG})
    torch.save(open_clip.create_model("Small-8").state_dict(), tmp_path / "weights.pt")
    for name in (f"Small-8@{tmp_path / 'weights.pt'}", str(clip_folder_at(tmp_path / "clip"))):
        loaded = mope.load_model(name)
        preprocess = Preprocess(_describe_preprocessing(loaded))
        tokenizer = Tokenizer(_write_tokenizer(loaded, tmp_path), tmp_path)
        expected = loaded.preprocess(picture()).numpy()
        np.testing.assert_allclose(preprocess(picture()), expected, atol=0.1)  # transformers resizes tensors
        assert np.array_equal(tokenizer(TEXTS), loaded.tokenizer(TEXTS).numpy())


def damaged(tiny: Path, folder: Path, **changes: Any) -> Path:
    shutil.copytree(tiny, folder)
    about = json.loads((folder / "deployment.json").read_text())
    (folder / "deployment.json").write_text(json.dumps(about | changes))
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"format": "torch"},
            r"must be of an export as onnx or executorch, of format version 1; found \{'format': 'torch'",
        ),
        ({"format_version": 2}, r"format version 1; found .*'format_version': 2"),
        ({"files": {"image": {}}}, r"must list the files image and text"),
        ({"files": {"image": {"file": "../x"}, "text": {}}}, r"must list files of its folder; found .*'\.\./x'"),
        ({"files": {"image": {"file": "no.onnx"}, "text": {}}}, r"folder must hold no\.onnx; found none"),
        ({"files": {"image": {"file": "image.onnx"}, "text": {}}}, r"image\.onnx must be the file that .* lists"),
        ({"preprocessing": {"resize": "crop"}}, r"preprocessing must be as FORMAT\.md of the package describes it"),
        (
            {"tokenizer": {"kind": "pickle", "length": 5}},
            r"tokenizer must be as FORMAT\.md of the package describes it",
        ),
        ({"tokenizer": {"kind": "bpe", "length": 5, "file": "../x"}}, r"tokenizer must name a file of its folder"),
        ({"tokenizer": {"kind": "words", "length": 5}}, r"describes it; found KeyError: 'words'"),
    ],
)
def test_folders_that_are_not_as_they_should_be(
    changes: dict[str, Any], message: str, tiny: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelLoadError, match=message):
        load_exported(damaged(tiny, tmp_path / "bad", **changes))


def test_files_that_are_damaged_missing_or_of_another_export(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"folder must hold deployment\.json of an export"):
        load_exported(tmp_path)
    folder = damaged(tiny, tmp_path / "bad")
    shutil.copy(folder / "text.onnx", folder / "image.onnx")
    with pytest.raises(
        ModelLoadError, match=r"image\.onnx must be the file that deployment\.json lists; found another"
    ):
        load_exported(folder)
    (folder / "image.onnx").unlink()
    with pytest.raises(ModelLoadError, match=r"folder must hold image\.onnx; found none that can be read"):
        load_exported(folder)


def test_models_without_their_inputs_say_so(tiny: Path, tmp_path: Path) -> None:
    found = load_exported(damaged(tiny, tmp_path / "bare", preprocessing=None, tokenizer=None))
    with pytest.raises(ModelLoadError, match=r"preprocessing must be in deployment\.json; found none"):
        found.preprocess(picture())
    with pytest.raises(ModelLoadError, match=r"tokenizer must be in deployment\.json; found none"):
        found.tokenizer("an owl")
