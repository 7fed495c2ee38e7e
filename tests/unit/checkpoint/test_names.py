"""load_model: every form of a name on small models made here, and what each failure says. Nothing is downloaded."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import open_clip
import pytest
import torch
import transformers
from open_clip import factory, pretrained
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

import torch_pruning_mope as mope
from torch_pruning_mope import load_model
from torch_pruning_mope.errors import ModelLoadError, UnsupportedModelError

from .cases import clip_folder_at, in_cache

CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "patch_size": 8, "head_width": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
HALVES = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear", "resize_mode": "squash"}
LETTERS = "abcdefghijklmnopqrstuvwxyz"
TEXTS = [
    "an owl",
    "A red CAR and a very long sentence about everything on this earth that has a name and a number " * 2,
]


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network, no cache of the user's, and two small architectures as if open_clip had shipped them."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for name in ("_MODEL_CONFIG_PATHS", "_MODEL_CONFIGS"):
        monkeypatch.setattr(factory, name, getattr(factory, name).copy())
    folder = tmp_path / "configs"
    folder.mkdir()
    for name in ("Small-8", "Plain-8"):
        (folder / f"{name}.json").write_text(json.dumps(CONFIG))
    open_clip.add_model_config(folder)
    tags = {"first": {"hf_hub": "org/first/", "quick_gelu": True, **HALVES}, "second_s1b": {"hf_hub": "o/s/", **HALVES}}
    monkeypatch.setitem(pretrained._PRETRAINED, "Small-8", tags)


@pytest.fixture
def small() -> open_clip.CLIP:
    return open_clip.create_model("Small-8")


@pytest.fixture
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))


@pytest.fixture
def clip_folder(tmp_path: Path) -> Path:
    return clip_folder_at(tmp_path / "clip")


@pytest.fixture
def siglip_folder(tmp_path: Path) -> Path:
    """A SigLIP of transformers whose tokenizer is SentencePiece's."""
    sentencepiece = pytest.importorskip("sentencepiece")
    folder = tmp_path / "siglip"
    text = {"vocab_size": 60, "max_position_embeddings": 9, "projection_size": 16}
    config = transformers.SiglipConfig(text_config={**size(), **text}, vision_config=vision())
    transformers.SiglipModel(config).save_pretrained(folder)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([f"{a}{b} {b}{a}" for a in LETTERS for b in LETTERS]),
        model_prefix=str(tmp_path / "words"),
        vocab_size=60,
        pad_id=3,
        minloglevel=9,
    )
    transformers.SiglipTokenizer(str(tmp_path / "words.model")).save_pretrained(folder)
    transformers.SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def size() -> dict[str, int]:
    return {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def vision() -> dict[str, int]:
    return {**size(), "image_size": 32, "patch_size": 8}


def open_clip_folder(folder: Path, model: nn.Module, **text: Any) -> Path:
    """A folder as open_clip's push_to_hf_hub fills it."""
    folder.mkdir(parents=True)
    config = {"model_cfg": {**CONFIG, "text_cfg": {**CONFIG["text_cfg"], **text}}, "preprocess_cfg": HALVES}  # type: ignore[dict-item]
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder


def same(model: nn.Module, expected: nn.Module) -> None:
    assert not model.training
    found = model.state_dict()
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0)


def test_tiny_with_the_inputs_of_its_pairs() -> None:
    loaded = load_model("tiny")
    scenes = mope.emoji_scenes("test", 4)
    pairs = mope.emoji_pairs("test", 4)
    images = [loaded.preprocess(Image.fromarray(pixels)) for pixels, _ in scenes]
    found = mope.Pairs(torch.stack(images), loaded.tokenizer([caption for _, caption in scenes]))
    assert found.fingerprint() == pairs.fingerprint()
    same(loaded.model, mope.load_tiny_clip())
    assert loaded.preprocess(Image.new("L", (30, 50))).shape == (3, 64, 64)


def test_three_parts_that_score(picture: Image.Image) -> None:
    with pytest.warns(UserWarning, match=r"'Small-8' has no weights, so they are random.*Tags: first, second_s1b"):
        model, preprocess, tokenizer = load_model("Small-8", device=torch.device("cpu"))
    encoder = mope.DualEncoder(model)
    images = torch.stack([preprocess(picture), preprocess(picture.rotate(90)), preprocess(picture.rotate(45))])
    table = mope.score(encoder, mope.Pairs(images, tokenizer(["a", "b", "c"])), kinds=("head",), progress=False)
    assert len(table.scores) == 10


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("name", ["Small-8", "Small/8"])
def test_a_file_of_weights(small: open_clip.CLIP, tmp_path: Path, suffix: str, name: str) -> None:
    file = tmp_path / f"weights@home{suffix}"
    state = small.state_dict()
    if suffix == ".pt":  # as open_clip's training writes it
        torch.save({"epoch": 3, "state_dict": {f"module.{key}": value for key, value in state.items()}}, file)
    else:
        save_file(state, file)
    loaded = load_model(f"{name}@{file}")
    same(loaded.model, small)
    assert loaded.tokenizer(["an owl"]).shape == (1, 16)


def test_a_file_is_prepared_for_as_the_tags_are(small: open_clip.CLIP, tmp_path: Path, picture: Image.Image) -> None:
    save_file(small.state_dict(), tmp_path / "weights.safetensors")
    found = load_model(f"Small-8@{tmp_path / 'weights.safetensors'}").preprocess(picture)
    _, expected = open_clip.create_model_from_pretrained(
        f"local-dir:{open_clip_folder(tmp_path / 'folder', small)}", load_weights=True
    )
    torch.testing.assert_close(found, expected(picture), rtol=0, atol=0)
    default = load_model(f"Plain-8@{tmp_path / 'weights.safetensors'}").preprocess(picture)
    assert not torch.equal(default, found)
    assert float(default.max()) > 1.5  # OpenAI's normalisation, not halves


def test_a_file_where_tags_differ(
    small: open_clip.CLIP, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, picture: Image.Image
) -> None:
    save_file(small.state_dict(), tmp_path / "weights.safetensors")
    tags = {"first": HALVES, "other": {**HALVES, "resize_mode": "shortest"}}
    monkeypatch.setitem(pretrained._PRETRAINED, "Small-8", tags)
    with pytest.warns(UserWarning, match="tags of Small-8 differ in how they prepare images"):
        loaded = load_model(f"Small-8@{tmp_path / 'weights.safetensors'}")
    assert float(loaded.preprocess(picture).max()) > 1.5


def test_a_tag_in_the_cache(small: open_clip.CLIP, tmp_path: Path, picture: Image.Image) -> None:
    cache = tmp_path / "cache"
    open_clip_folder(in_cache(cache, "org/first"), small)
    loaded = load_model("Small-8@first", cache_dir=cache)
    same(loaded.model, small)
    quick = [module for module in loaded.model.modules() if type(module).__name__ == "QuickGELU"]
    assert len(quick) == 3, "the tag says that it was trained with QuickGELU"
    assert float(loaded.preprocess(picture).abs().max()) <= 1


def test_folders_and_repositories_of_open_clip(small: open_clip.CLIP, tmp_path: Path, picture: Image.Image) -> None:
    folder = open_clip_folder(tmp_path / "model", small)
    (folder / "config.json").write_text("{}")  # both forms: open_clip's is taken
    open_clip_folder(in_cache(tmp_path / "hub", "org/model"), small)
    results = []
    for name in (str(folder), f"local-dir:{folder}", "hf-hub:org/model"):
        loaded = load_model(name, cache_dir=tmp_path / "hub")
        same(loaded.model, small)
        results.append((loaded.preprocess(picture), loaded.tokenizer(TEXTS)))
    for image, tokens in results:
        assert torch.equal(image, results[0][0])
        assert tokens.shape == (2, 16)


def test_a_home_folder(small: open_clip.CLIP, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_clip_folder(tmp_path / "model", small)
    monkeypatch.setenv("HOME", str(tmp_path))
    same(load_model("~/model").model, small)
    same(load_model("local-dir:~/model").model, small)
    same(load_model("Small-8@~/model/open_clip_model.safetensors").model, small)


def test_clip_of_transformers(clip_folder: Path, tmp_path: Path, picture: Image.Image) -> None:
    original = transformers.CLIPModel.from_pretrained(clip_folder)
    shutil.copytree(clip_folder, in_cache(tmp_path / "hub", "org/clip"))
    for name in (str(clip_folder), f"hf:{clip_folder}", "hf:org/clip"):
        model, preprocess, tokenizer = load_model(name, cache_dir=tmp_path / "hub")
        assert all(value.dtype == torch.float32 for value in model.parameters())
        same(model, original.float())
        tokens = tokenizer(TEXTS)
        assert tokens.shape == (2, 12)
        assert tokens.dtype == torch.int64
        assert tokens[:, -1].tolist() == [1, 1], "padded with, and cut down to, the end of text"
        assert tokenizer("an owl").tolist() == tokens[:1].tolist()
        assert tokenizer([]).shape == (0, 12)
        image = preprocess(picture.convert("P"))
        assert image.shape == (3, 32, 32)
        with torch.inference_mode():
            output = model(pixel_values=image[None], input_ids=tokens)
        assert torch.isfinite(output.logits_per_image).all()
        pickle.loads(pickle.dumps(preprocess))(picture)  # loaders hand it to their workers


def test_siglip_of_transformers(siglip_folder: Path, picture: Image.Image) -> None:
    model, preprocess, tokenizer = load_model(str(siglip_folder))
    tokens = tokenizer(TEXTS)
    assert tokens.shape == (2, 9)
    assert (
        tokens[0].tolist()
        == transformers.AutoTokenizer.from_pretrained(siglip_folder)(TEXTS[0], padding="max_length", max_length=9)[
            "input_ids"
        ]
    )
    with torch.inference_mode():
        output = model(pixel_values=preprocess(picture)[None], input_ids=tokens)
    assert torch.isfinite(output.logits_per_image).all()


def test_siglip_reads_lower_case_and_is_padded_at_the_end(siglip_folder: Path) -> None:
    """SigLIP 2's repositories have Gemma's tokenizer, which keeps capitals and pads at the start."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    for file in siglip_folder.glob("*token*"):
        file.unlink()
    (siglip_folder / "spiece.model").unlink(missing_ok=True)
    backend = Tokenizer(models.WordLevel({"<pad>": 0, "<unk>": 1, "an": 2, "owl": 3}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>", padding_side="left"
    ).save_pretrained(siglip_folder)
    assert load_model(str(siglip_folder)).tokenizer("An OWL").tolist() == [[2, 3, 0, 0, 0, 0, 0, 0, 0]]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", r"name: must be 'tiny', ARCH, .* found ''; open_clip\.list_models\(\) lists"),
        ("qqqq", r"found 'qqqq'; open_clip\.list_models\(\) lists"),
        ("smal-8", "found 'smal-8'; did you mean 'Small-8'"),
        ("vit-b-32", "did you mean 'ViT-B-32'"),
        ("ViT-B-23@openai", "did you mean 'ViT-B-32@openai'"),
        ("tinny", "did you mean 'tiny'"),
        ("Small-8@", r"after Small-8@ must come .* found ''; its tags are first, second_s1b"),
        ("Small-8@second-s2b", r"found 'second-s2b'; did you mean 'Small-8@second_s1b'\?"),
        ("Small-8@webli", r"found 'webli'; its tags are first, second_s1b"),
        ("Plain-8@missing.pt", r"found 'missing\.pt'; it has no tags: pass a file"),
        ("/no/such/folder", "found '/no/such/folder'; nothing is there"),
        ("./ViT-B-32", r"found '\./ViT-B-32'; nothing is there"),
        (
            "zzz/clip",
            "write hf:zzz/clip for a repository in transformers' form, hf-hub:zzz/clip for one in open_clip's",
        ),
        ("hf:", r"something must follow hf:, found nothing"),
        (
            "local-dir:/no/such/folder",
            r"'local-dir:/no/such/folder' must name a folder, found none; correct the path",
        ),
    ],
)
def test_unknown_names(name: str, words: str) -> None:
    with pytest.raises(ModelLoadError, match=words):
        load_model(name)


def test_a_file_without_its_architecture(tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    file.touch()
    with pytest.raises(
        ModelLoadError, match=r"the file '.*weights\.pt', which does not say.*; write ARCH@.*weights\.pt"
    ):
        load_model(str(file))


def test_a_file_of_other_weights(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, tmp_path / "weights.safetensors")
    with pytest.raises(
        ModelLoadError, match=r"found: Error\(s\) in loading state_dict for CLIP: Missing.*; pass weights of"
    ):
        load_model(f"Small-8@{tmp_path / 'weights.safetensors'}")


class Trap:
    """Would leave a file behind if it were unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return (Path.touch, (self.file,))


def test_code_in_a_file_does_not_run(small: open_clip.CLIP, tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    torch.save({"state_dict": small.state_dict(), "config": Trap(sprung)}, tmp_path / "weights.pt")
    with pytest.raises(
        ModelLoadError, match="unpickling it is refused, since that can run code; pass weights of Small-8"
    ):
        load_model(f"Small-8@{tmp_path / 'weights.pt'}")
    assert not sprung.exists()


@pytest.mark.parametrize("content", [b"", b"this is no checkpoint"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_broken_file(tmp_path: Path, content: bytes, suffix: str) -> None:
    file = tmp_path / f"weights{suffix}"
    file.write_bytes(content)
    with pytest.raises(ModelLoadError, match=r"name: 'Small-8@.*' must be a model that can be loaded, found: ."):
        load_model(f"Small-8@{file}")


def test_what_cannot_be_downloaded(tmp_path: Path) -> None:
    for name in ("Small-8@first", "hf-hub:org/nothing", "hf:org/nothing"):
        with pytest.raises(ModelLoadError, match=rf"'{name}' must be .*; connect to the network, or pass") as caught:
            load_model(name, cache_dir=tmp_path / "cache")
        assert caught.value.__cause__ is not None
        assert re.search(r"\((LocalEntryNotFoundError|OfflineModeIsEnabled): ", str(caught.value)), (
            "what was at the bottom"
        )
        assert "\n" not in str(caught.value)


def test_a_repository_without_weights_is_not_random(small: open_clip.CLIP, tmp_path: Path, clip_folder: Path) -> None:
    folder = open_clip_folder(in_cache(tmp_path / "hub", "org/model"), small)
    (folder / "open_clip_model.safetensors").unlink()
    for name in ("hf-hub:org/model", str(folder)):
        with pytest.raises(ModelLoadError, match=r"Required pretrained weights .* could not be loaded"):
            load_model(name, cache_dir=tmp_path / "hub")
    (clip_folder / "model.safetensors").unlink()
    with pytest.raises(ModelLoadError, match=r"no file named model\.safetensors.*; complete "):
        load_model(str(clip_folder))


def test_weights_in_part_are_not_random(clip_folder: Path) -> None:
    state = transformers.CLIPModel.from_pretrained(clip_folder).state_dict()
    del state["text_projection.weight"]
    save_file(state, clip_folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ModelLoadError, match=r"found 1 missing \(first: text_projection\.weight\), which would be random"
    ):
        load_model(str(clip_folder))


def test_the_other_form_of_repository(clip_folder: Path, small: open_clip.CLIP, tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    open_clip_folder(in_cache(hub, "org/model"), small)
    shutil.copytree(clip_folder, in_cache(hub, "org/clip"))
    with pytest.raises(ModelLoadError, match=r"; write hf-hub:org/model if it is in open_clip's form$"):
        load_model("hf:org/model", cache_dir=hub)
    with pytest.raises(ModelLoadError, match=r"; write hf:org/clip if it is in transformers' form$"):
        load_model("hf-hub:org/clip", cache_dir=hub)


def test_folders_of_neither_form(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelLoadError, match=r"must hold open_clip_config\.json .* found nothing in"):
        load_model(str(tmp_path / "empty"))
    (tmp_path / "empty" / "weights.pt").touch()
    with pytest.raises(ModelLoadError, match=r"found weights\.pt in .*; for weights alone, write ARCH@FILE"):
        load_model(str(tmp_path / "empty"))


def test_folders_without_their_processor(clip_folder: Path) -> None:
    for file in clip_folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ModelLoadError, match=r"tokenizer must have a vocabulary, found none in .*clip'; put its files"):
        load_model(str(clip_folder))
    (clip_folder / "preprocessor_config.json").unlink()
    with pytest.raises(ModelLoadError, match=r"Can't load image processor .*; complete .*clip"):
        load_model(str(clip_folder))


def test_an_open_clip_folder_without_its_tokenizer(small: open_clip.CLIP, tmp_path: Path) -> None:
    folder = open_clip_folder(tmp_path / "model", small, hf_tokenizer_name="org/words")
    (folder / "config.json").write_text(json.dumps({"model_type": "clip"}))
    with pytest.raises(ModelLoadError, match=r"tokenizer must have a vocabulary, found none in .*model'"):
        load_model(str(folder))


def test_models_that_are_no_dual_encoders(tmp_path: Path) -> None:
    transformers.BertConfig(**size()).save_pretrained(tmp_path / "bert")
    with pytest.raises(UnsupportedModelError, match=r"must be a dual encoder .* found a model of type 'bert'"):
        load_model(str(tmp_path / "bert"))
    transformers.Siglip2Config(text_config=size(), vision_config=size()).save_pretrained(tmp_path / "naflex")
    transformers.Siglip2ImageProcessor().save_pretrained(tmp_path / "naflex")
    with pytest.raises(UnsupportedModelError, match=r"images must be \[C, H, W\] of one size, found \[256, 768\]"):
        load_model(str(tmp_path / "naflex"))


def test_without_transformers(clip_folder: Path, small: open_clip.CLIP, tmp_path: Path) -> None:
    """In a process of its own, which cannot import transformers."""
    folder = open_clip_folder(tmp_path / "model", small)
    other = open_clip_folder(tmp_path / "other", small, hf_tokenizer_name="org/words")
    code = f"""
import sys
sys.modules["transformers"] = None
import torch_pruning_mope as mope
mope.load_model({str(folder)!r})
for name in ({str(clip_folder)!r}, "hf:org/clip", {str(other)!r}):
    try:
        mope.load_model(name)
    except mope.errors.ModelLoadError as error:
        assert str(error).endswith("; pip install torch-pruning-mope[transformers]"), error
    else:
        raise AssertionError(name)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_output_is_that_of_open_clip(small: open_clip.CLIP, tmp_path: Path, picture: Image.Image) -> None:
    folder = open_clip_folder(tmp_path / "model", small)
    expected_model, expected_preprocess = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    loaded = load_model(str(folder))
    with torch.inference_mode():
        found: Tensor = loaded.model.encode_image(loaded.preprocess(picture)[None])  # type: ignore[operator]
        expected = expected_model.eval().encode_image(expected_preprocess(picture)[None])
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
