"""What is loaded is what was saved: the same bits, the same counts, the same numbers of layers and units."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch_pruning as tp
import transformers
from PIL import Image
from torch import nn

import torch_pruning_mope as mope
from torch_pruning_mope import DualEncoder, load_model
from torch_pruning_mope.checkpoint import load
from torch_pruning_mope.checkpoint._spec import count, numbers_of, spec_of
from torch_pruning_mope.errors import ModelLoadError, WrongModelError
from torch_pruning_mope.scoring import Unit

from .. import zoo
from .cases import CONFIG, clip_folder_at, prune, register


def same(encoder: DualEncoder, other: DualEncoder) -> None:
    """Bit for bit, on images and captions, and in what is known of the original."""
    shape, length = encoder.example_inputs["images"].shape[1:], encoder.example_inputs["tokens"].shape[1]
    images, tokens = torch.randn(3, *shape), zoo.tokens(4)
    tokens = nn.functional.pad(tokens, (0, max(0, length - tokens.shape[1])))[:, :length]
    dtype = next(encoder.model.parameters()).dtype
    with torch.inference_mode():
        assert torch.equal(encoder.embed("image", images.to(dtype)), other.embed("image", images.to(dtype)))
        assert torch.equal(encoder.embed("text", tokens), other.embed("text", tokens))
    assert repr(encoder.model) == repr(other.model)
    assert not other.model.training
    for tensors in ("state_dict", "named_buffers"):
        ours, theirs = dict(getattr(encoder.model, tensors)()), dict(getattr(other.model, tensors)())
        assert {name: (t.dtype, t.shape) for name, t in ours.items()} == {
            n: (t.dtype, t.shape) for n, t in theirs.items()
        }
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert encoder.removed == other.removed
    assert spec_of(encoder) == spec_of(other)


AGAIN = ("open_clip ViT", "Swin", "mT5", "transformers CLIP")


@pytest.mark.parametrize(
    "family", {**dict.fromkeys(zoo.DISTINCT), "EVA02": None, "RoBERTa": None, **dict.fromkeys(AGAIN)}
)
def test_families(family: str, tmp_path: Path) -> None:
    """Heads, neurons, width and layers pruned, saved, loaded; for some, pruned on and saved and loaded again."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        encoder = DualEncoder(zoo.build(family))
    prune(encoder, width=0.3, blocks=family not in AGAIN)
    own = family.startswith("transformers")  # these say themselves what they were
    encoder.save_pretrained(tmp_path / "first")
    loaded = DualEncoder.from_pretrained(tmp_path / "first", model=None if own else zoo.build(family))
    same(encoder, loaded)
    if family not in AGAIN:
        return
    prune(loaded, blocks=True, head_ratio=0.0)
    loaded.save_pretrained(tmp_path / "second")
    again = DualEncoder.from_pretrained(tmp_path / "second", model=None if own else zoo.build(family))
    same(loaded, again)


def test_empty_sublayers_and_numbers_of_units(tmp_path: Path) -> None:
    encoder = DualEncoder(mope.load_tiny_clip())
    gone = [Unit("head", "image", 0, head, tuple(range(32 * head, 32 * head + 32))) for head in range(6)]
    gone += [Unit("neurons", "text", 1, 0, tuple(range(512))), Unit("head", "image", 2, 4, tuple(range(128, 160)))]
    gone += [Unit("neurons", "text", 3, 0, (0, 2, 511)), Unit("block", "image", 3, 0)]
    mope.remove_units(encoder, gone)
    encoder.save_pretrained(tmp_path / "saved")
    loaded = DualEncoder.from_pretrained(tmp_path / "saved")
    same(encoder, loaded)
    assert loaded.block_numbers("image") == [0, 1, 2, 4, 5]
    spec = spec_of(loaded)
    assert [layer.heads for layer in spec["image"].layers][:3] == ["", "0-5", "0-3,5"]
    assert [count(layer.neurons) for layer in spec["text"].layers] == [512, 0, 512, 509]
    assert spec["text"].layers[3].neurons == "1,3-510"
    content = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert content["towers"]["text"]["layers"][3]["neurons"] == "1,3-510"
    mope.remove_units(loaded, [Unit("head", "image", 2, 4, tuple(range(128, 160)))])  # the original's fifth has gone
    assert spec_of(loaded)["image"].layers[2].heads == "0-3"


def test_a_pruner_of_the_users_own_is_followed(tmp_path: Path) -> None:
    encoder = DualEncoder(mope.load_tiny_clip())
    weights = {name: weight.clone() for name, weight in encoder.model.state_dict().items()}
    arguments = encoder.pruner_arguments(head_ratio=0.5, ffn_ratio=0.5, width_ratio=0.25, iterative_steps=2)
    pruner = tp.pruner.MetaPruner(encoder.model, importance=tp.importance.GroupMagnitudeImportance(), **arguments)
    pruner.step()
    pruner.step()
    encoder.save_pretrained(tmp_path)
    for name, tower in spec_of(DualEncoder.from_pretrained(tmp_path)).items():
        rows = torch.tensor(numbers_of(str(tower.widths[0])))
        for layer in tower.layers:
            assert isinstance(layer.heads, str)
            assert isinstance(layer.neurons, str)
            heads, neurons = numbers_of(layer.heads), numbers_of(layer.neurons)
            prefix = f"{'visual.' if name == 'image' else ''}transformer.resblocks.{layer.number}"
            left = encoder.model.get_submodule(prefix)
            expected = weights[f"{prefix}.mlp.c_proj.weight"][rows][:, neurons]
            assert torch.equal(left.mlp.c_proj.weight, expected)
            channels = [32 * head + channel for head in heads for channel in range(32)]
            expected = weights[f"{prefix}.attn.out_proj.weight"][rows][:, channels]
            assert torch.equal(left.attn.out_proj.weight, expected)


def test_the_tiny_clip_with_its_inputs(tmp_path: Path) -> None:
    encoder = DualEncoder(mope.load_tiny_clip())
    prune(encoder)
    encoder.save_pretrained(tmp_path, metrics={"R@1, image to text": 71.25})
    pairs, scenes = mope.emoji_pairs("test", 3), mope.emoji_scenes("test", 3)
    for loaded in (load(tmp_path), load_model(str(tmp_path)), load_model(f"mope:{tmp_path}")):
        images = torch.stack([loaded.preprocess(Image.fromarray(pixels)) for pixels, _ in scenes])
        assert torch.equal(images, pairs.images.float() if images.is_floating_point() else pairs.images)
        assert torch.equal(loaded.tokenizer([caption for _, caption in scenes]), pairs.tokens)
        same(encoder, DualEncoder.from_pretrained(tmp_path))
        with torch.inference_mode():
            assert torch.equal(loaded.model.encode_image(images), encoder.model.encode_image(images))
    card = (tmp_path / "README.md").read_text()
    assert "| parameters | 3,774,849 |" in card
    assert "| R@1, image to text | 71.25 |" in card
    assert "library_name: torch-pruning-mope" in card
    assert "Unknown: the licence" in card


def test_a_loaded_model_is_pruned_on_and_saved_again(tmp_path: Path) -> None:
    encoder = DualEncoder(mope.load_tiny_clip())
    prune(encoder, blocks=True)
    encoder.save_pretrained(tmp_path / "first")
    model = load(tmp_path / "first").model
    second = DualEncoder(model)  # knows nothing of the original by itself
    prune(second, blocks=True, head_ratio=0.1)
    with pytest.raises(ModelLoadError, match=r"base must be what the model was before it was pruned; found 'tiny'"):
        second.save_pretrained(tmp_path / "second")
    second.save_pretrained(tmp_path / "second", base=tmp_path / "first")
    third = DualEncoder.from_pretrained(tmp_path / "second")
    assert third.block_numbers("image") == [2, 3, 4, 5]
    spec, before = spec_of(third)["image"], spec_of(encoder)["image"]
    for layer in spec.layers:
        earlier = next(one for one in before.layers if one.number == layer.number)
        assert isinstance(layer.neurons, str)
        assert isinstance(earlier.neurons, str)
        assert set(numbers_of(layer.neurons)) < set(numbers_of(earlier.neurons))
    fresh = DualEncoder(mope.load_tiny_clip())
    with pytest.raises(WrongModelError, match=r"base must be the checkpoint that the encoder's model was loaded from"):
        fresh.save_pretrained(tmp_path / "third", base=tmp_path / "first")
    assert not (tmp_path / "third").exists()


@pytest.fixture
def _architectures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "configs").mkdir()
    trunk = {"image_size": 32, "timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": "linear"}
    models = {
        "Small-8": {**CONFIG, "text_cfg": {**CONFIG["text_cfg"], "tokenizer_kwargs": {"clean": "canonicalize"}}},
        "Quick-8": {**CONFIG, "quick_gelu": True},
        "Timm-8": {**CONFIG, "vision_cfg": trunk, "custom_text": True, "init_logit_bias": -10},
    }
    register(tmp_path / "configs", monkeypatch, **models)


@pytest.mark.usefixtures("_architectures")
@pytest.mark.parametrize("name", ["Small-8", "Timm-8"])
def test_open_clip_by_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preprocessing = {"image_mean": (0.5,) * 3, "image_interpolation": "bilinear", "image_resize_mode": "squash"}
    model, _, preprocess = open_clip.create_model_and_transforms(name, **preprocessing)
    tokenizer = open_clip.get_tokenizer(name)
    encoder = DualEncoder(model.eval())
    prune(encoder, blocks=True)
    encoder.save_pretrained(tmp_path / "saved", base=name)
    register(tmp_path, monkeypatch)  # another machine, where nobody has heard of it
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", {})
    shutil.move(tmp_path / "saved", tmp_path / "moved")
    same(encoder, DualEncoder.from_pretrained(tmp_path / "moved"))
    loaded = load_model(str(tmp_path / "moved"))
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
    assert torch.equal(loaded.preprocess(picture), preprocess(picture))
    assert torch.equal(loaded.tokenizer(["A red, CAR!"]), tokenizer(["A red, CAR!"]))


@pytest.mark.usefixtures("_architectures")
def test_a_wrong_base_is_refused_when_saving(tmp_path: Path) -> None:
    encoder = DualEncoder(open_clip.create_model("Small-8").eval())
    with pytest.raises(ModelLoadError, match=r"found 'Quick-8', which differs: .*GELU"):
        encoder.save_pretrained(tmp_path / "saved", base="Quick-8")
    with pytest.raises(ModelLoadError, match=r"name: must be .* found 'No-8'"):
        encoder.save_pretrained(tmp_path / "saved", base="No-8")
    assert not (tmp_path / "saved").exists()
    prune(encoder)
    encoder.save_pretrained(tmp_path / "saved")  # a model of one's own, as far as can be seen
    with pytest.raises(ModelLoadError, match=r"this checkpoint is of a open_clip.model.CLIP, which only you can build"):
        DualEncoder.from_pretrained(tmp_path / "saved")
    with pytest.raises(ModelLoadError, match=r"which only you can build. Pass DualEncoder"):
        load(tmp_path / "saved")
    same(encoder, DualEncoder.from_pretrained(tmp_path / "saved", model=open_clip.create_model("Small-8")))
    with pytest.raises(ModelLoadError, match=r"must be part of its base's|must have the layers"):
        DualEncoder.from_pretrained(tmp_path / "saved", model=zoo.build("open_clip ViT"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_types_stay(dtype: torch.dtype, tmp_path: Path) -> None:
    encoder = DualEncoder(zoo.build("transformers CLIP").to(dtype))
    prune(encoder)
    encoder.save_pretrained(tmp_path)
    same(encoder, DualEncoder.from_pretrained(tmp_path))


@pytest.fixture
def clip_folder(tmp_path: Path) -> Path:
    return clip_folder_at(tmp_path / "clip", layers=2)


def test_transformers_with_its_tokenizer(clip_folder: Path, tmp_path: Path) -> None:
    original = load_model(str(clip_folder))
    encoder = DualEncoder(original.model)
    prune(encoder, blocks=True)
    encoder.save_pretrained(tmp_path / "saved", base=clip_folder)
    encoder.save_pretrained(tmp_path / "bare")
    shutil.rmtree(clip_folder)
    loaded = load(tmp_path / "saved")
    picture = Image.new("RGB", (40, 50), "teal")
    assert torch.equal(loaded.preprocess(picture), original.preprocess(picture))
    assert torch.equal(loaded.tokenizer(["an owl"]), original.tokenizer(["an owl"]))
    same(encoder, DualEncoder.from_pretrained(tmp_path / "saved"))
    same(encoder, DualEncoder.from_pretrained(tmp_path / "bare"))
    with pytest.raises(ModelLoadError, match=r"must hold preprocessing and tokenizer .* save it with base="):
        load(tmp_path / "bare")
    DualEncoder.from_pretrained(tmp_path / "saved").save_pretrained(tmp_path / "again")
    assert torch.equal(load(tmp_path / "again").tokenizer(["an owl"]), original.tokenizer(["an owl"]))
    (tmp_path / "again" / "base" / "added_tokens.json").write_text("{}")
    with pytest.raises(ModelLoadError, match=r"base must hold the files that config.json lists and no others"):
        load(tmp_path / "again")


def test_a_text_encoder_of_transformers_in_open_clip(clip_folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Its configuration and tokenizer come along, though open_clip would look both up by name."""
    text = tmp_path / "roberta"
    transformers.RobertaConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=16, pad_token_id=0,
    ).save_pretrained(text)  # fmt: skip
    for file in clip_folder.glob("*token*"):
        shutil.copy(file, text)
    names = {"hf_model_name": str(text), "hf_tokenizer_name": str(text), "hf_proj_type": "mlp", "context_length": 12}
    (tmp_path / "configs").mkdir()
    register(tmp_path / "configs", monkeypatch, **{"Roberta-8": {**CONFIG, "text_cfg": names}})
    model = open_clip.create_model("Roberta-8", pretrained_text=False).eval()
    tokens = open_clip.get_tokenizer("Roberta-8")(["an owl"])
    encoder = DualEncoder(model)
    prune(encoder)
    encoder.save_pretrained(tmp_path / "saved", base="Roberta-8")
    shutil.rmtree(text)
    assert torch.equal(load(tmp_path / "saved").tokenizer(["an owl"]), tokens)
    same(encoder, DualEncoder.from_pretrained(tmp_path / "saved"))


def test_the_weights_must_be_there(tmp_path: Path) -> None:
    encoder = DualEncoder(mope.load_tiny_clip().to("meta"))
    with pytest.raises(ValueError, match="model must have its weights"):
        encoder.save_pretrained(tmp_path / "saved")
    model: nn.Module = zoo.build("open_clip ViT")
    DualEncoder(model).save_pretrained(tmp_path / "saved")
    with pytest.raises(ModelLoadError, match=r"every tensor must have a value; found none for \['attn_mask'\]"):
        DualEncoder.from_pretrained(tmp_path / "saved", model=zoo.build("open_clip ViT").to("meta"))
