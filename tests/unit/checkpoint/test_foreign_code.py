"""Model folders, repositories and checkpoints that bring code: it never runs, whoever answers a question on the terminal."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import open_clip
import pytest
import transformers
from safetensors.torch import save_file

import torch_pruning_mope as mope
from torch_pruning_mope import DualEncoder
from torch_pruning_mope.errors import ModelLoadError

from .cases import CONFIG, clip_folder_at, in_cache, reseal

EVIL = "evil.Evil"


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that foreign code would make; every question is answered with yes, and nothing is downloaded."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    return tmp_path / "marker"


def plant(folder: Path, marker: Path) -> None:
    """A module whose import makes the marker."""
    (folder / "evil.py").write_text(f"from pathlib import Path\nPath({str(marker)!r}).touch()\nclass Evil: pass\n")


def change(file: Path, **values: Any) -> None:
    content = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(content | values))


def open_clip_at(folder: Path, marker: Path, **text: Any) -> Path:
    """A folder in open_clip's form with a tokenizer of transformers whose class is in a file of the folder."""
    folder.mkdir(parents=True)
    config = {"model_cfg": {**CONFIG, "text_cfg": {**CONFIG["text_cfg"], **text}}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    save_file(open_clip.CLIP(**CONFIG).state_dict(), folder / "open_clip_model.safetensors")
    change(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": [EVIL, None]}, tokenizer_class="Evil")
    plant(folder, marker)
    return folder


TOKENIZER = {"hf_tokenizer_name": "org/words"}


@pytest.mark.parametrize(
    "text",
    [
        {**TOKENIZER, "tokenizer_kwargs": {"trust_remote_code": True}},
        TOKENIZER,
        {"tokenizer_kwargs": {"bpe_path": "/etc/hostname"}},
        {"hf_model_name": "HERE", "hf_tokenizer_name": "org/words"},
    ],
)
def test_folders_of_open_clip(text: dict[str, Any], marker: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    text = {key: str(folder) if value == "HERE" else value for key, value in text.items()}
    open_clip_at(folder, marker, **text)
    change(folder / "config.json", model_type="evil", auto_map={"AutoConfig": EVIL, "AutoModel": EVIL})
    hub = in_cache(tmp_path / "hub", "org/model")
    shutil.copytree(folder, hub)
    shutil.copytree(folder, in_cache(tmp_path / "hub", "org/words"))
    for name in (str(folder), f"local-dir:{folder}", "hf-hub:org/model"):
        with contextlib.suppress(ModelLoadError):  # or the library's own class is taken
            mope.load_model(name)
        assert not marker.exists()


def test_a_trunk_of_timm_is_a_name(marker: Path, tmp_path: Path) -> None:
    folder = open_clip_at(tmp_path / "model", marker)
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["vision_cfg"] = {"timm_model_name": "local-dir:/etc", "image_size": 16}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelLoadError, match=r"timm_model_name must be a name of timm's.*found 'local-dir:/etc'"):
        mope.load_model(str(folder))


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("config.json", {"model_type": "evil", "auto_map": {"AutoConfig": EVIL, "AutoModel": EVIL}}),
        ("preprocessor_config.json", {"image_processor_type": "Evil", "auto_map": {"AutoImageProcessor": EVIL}}),
        ("tokenizer_config.json", {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": [EVIL, None]}}),
    ],
)
def test_folders_of_transformers(file: str, values: dict[str, Any], marker: Path, tmp_path: Path) -> None:
    folder = clip_folder_at(tmp_path / "clip")
    plant(folder, marker)
    change(folder / file, **values)
    if file == "preprocessor_config.json" and (folder / "processor_config.json").exists():
        (folder / "processor_config.json").unlink()
    shutil.copytree(folder, in_cache(tmp_path / "hub", "org/clip"))
    for name in (str(folder), f"hf:{folder}", "hf:org/clip"):
        with contextlib.suppress(ModelLoadError):  # or the library's own class is taken
            mope.load_model(name)
        assert not marker.exists()


def test_attention_kernels_of_a_repository_are_dropped(
    marker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.modeling_utils.lazy_import_flash_attention", lambda *_, **__: marker.touch())
    folder = clip_folder_at(tmp_path / "clip")
    change(folder / "config.json", _attn_implementation="org/kernel", attn_implementation="org/kernel")
    model = mope.load_model(str(folder)).model
    assert {model.config._attn_implementation, model.config.text_config._attn_implementation} == {"sdpa"}  # type: ignore[union-attr]
    assert not marker.exists()


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/hostname", 3])
def test_shards_of_weights_stay_in_their_folder(name: Any, marker: Path, tmp_path: Path) -> None:
    folder = clip_folder_at(tmp_path / "clip")
    shutil.move(folder / "model.safetensors", tmp_path / "secret.safetensors")
    change(folder / "model.safetensors.index.json", metadata={}, weight_map={"logit_scale": name})
    with pytest.raises(ModelLoadError, match=r"index\.json must name files of its folder; found"):
        mope.load_model(str(folder))


def checkpoint_at(folder: Path, source: Path) -> Path:
    DualEncoder(mope.load_model(str(source)).model).save_pretrained(folder, base=source)
    return folder


@pytest.mark.parametrize("load", [DualEncoder.from_pretrained, mope.load])
@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("config.json", {"model_type": "evil", "auto_map": {"AutoConfig": EVIL}}),
        ("preprocessor_config.json", {"image_processor_type": "Evil", "auto_map": {"AutoImageProcessor": EVIL}}),
        ("tokenizer_config.json", {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": [EVIL, None]}}),
    ],
)
def test_checkpoints(
    load: Callable[[Path], Any], file: str, values: dict[str, Any], marker: Path, tmp_path: Path
) -> None:
    """By somebody who sets all checksums right."""
    folder = checkpoint_at(tmp_path / "saved", clip_folder_at(tmp_path / "clip"))
    change(folder / "base" / file, **values)
    plant(folder / "base", marker)
    reseal(folder)
    with pytest.raises(ModelLoadError, match=r"base must hold files of .* alone; found 'evil\.py'"):
        load(folder)
    (folder / "base" / "evil.py").unlink()
    reseal(folder)
    with contextlib.suppress(ModelLoadError):
        load(folder)
    assert not marker.exists()
