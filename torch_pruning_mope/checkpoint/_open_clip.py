"""Bases of open_clip: configurations of architecture and preprocessing, and a tokenizer."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from reprlib import repr as short
from typing import Any

from open_clip.model import CLIP, set_model_preprocess_cfg
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict
from torch import nn

from .._io import parse_json
from ..data import EmojiTokenizer, tiny_clip_config
from ..errors import ModelLoadError
from ..loading import ModelName, emoji_image
from ..loading._limits import check_limits
from ..loading._open_clip import (
    TOKENIZER_OPTIONS,
    build_architecture,
    check_architecture,
    check_tokenizer_options,
    hf_tokenizer,
    read_architecture,
    read_open_clip_tokenizer,
)
from ..loading._transformers import saved


def is_tiny(model: nn.Module) -> bool:
    """Returns True for the embedded tiny CLIP: no other model has its vocabulary and context."""
    text = tiny_clip_config()["text_cfg"]
    table = getattr(model, "token_embedding", None)
    return (
        type(model) is CLIP
        and isinstance(table, nn.Embedding)
        and (table.num_embeddings, model.context_length) == (text["vocab_size"], text["context_length"])
    )


def describe(name: ModelName, model: Any, cache: str | None) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Returns a description of a model as it was before pruning, and the files of its tokenizer."""
    preprocessing = getattr(model.visual, "preprocess_cfg", None)
    files: dict[str, bytes] = {}
    if name.form == "tiny":
        architecture, tokenizer = tiny_clip_config(), {"kind": "emoji"}
        preprocessing = {"kind": "emoji"}
    else:
        architecture = read_architecture(name, cache)
        tokenizer, files = _tokenizer(architecture["text_cfg"], read_open_clip_tokenizer(name, architecture, cache))
    text = dict(architecture["text_cfg"])
    if "hf_model_name" in text:
        files |= saved(model.text.config)
    for key in ("hf_model_name", "hf_tokenizer_name"):  # their files come along; paths of this machine do not
        if key in text and Path(text[key]).expanduser().exists():
            text[key] = Path(text[key]).name
    description = {
        "kind": "open_clip",
        "name": name.label,
        "architecture": {**architecture, "text_cfg": text},
        "preprocessing": preprocessing or merge_preprocess_dict(PreprocessCfg(), {"size": model.visual.image_size}),
        "tokenizer": tokenizer,
    }
    return parse_json(json.dumps(description)), files


def _tokenizer(text: Mapping[str, Any], tokenizer: Any) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Settings and files of a tokenizer of open_clip's two kinds."""
    options = {key: value for key, value in text.get("tokenizer_kwargs", {}).items() if key in TOKENIZER_OPTIONS}
    settings = {"context_length": int(tokenizer.context_length), "options": options}
    if isinstance(tokenizer, HFTokenizer):
        return {"kind": "hf", "mode": text.get("tokenizer_mode"), **settings}, saved(tokenizer.tokenizer)
    if isinstance(tokenizer, SimpleTokenizer):
        return {"kind": "simple", **settings}, {}
    raise ModelLoadError(f"base must have a tokenizer of open_clip's; found a {type(tokenizer).__name__}.")


def check(description: Mapping[str, Any]) -> None:
    """Checks a description of unknown origin."""
    for name in ("preprocessing", "tokenizer"):
        if not isinstance(description.get(name), dict):
            raise ModelLoadError(f"base.{name} must be an object; found {short(description.get(name))}.")
    check_architecture(description.get("architecture"), "base.architecture")
    check_limits(description["preprocessing"], "base.preprocessing")
    tokenizer = description["tokenizer"]
    if tokenizer.get("kind") not in {"emoji", "hf", "simple"}:
        raise ModelLoadError(
            f"base.tokenizer.kind must be one of emoji, hf, simple; found {short(tokenizer.get('kind'))}."
        )
    check_limits(tokenizer, "base.tokenizer")
    check_tokenizer_options(tokenizer.get("options", {}), "base.tokenizer.options")


def build(description: Mapping[str, Any], files: Path) -> nn.Module:
    """Returns the model of a checked description, with random weights."""
    model = build_architecture(description["architecture"], str(files))
    if description["preprocessing"].get("kind") != "emoji":
        set_model_preprocess_cfg(model, _tuples(description["preprocessing"]))
    return model


def inputs(description: Mapping[str, Any], files: Path) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Preprocessing and tokenizer of a checked description."""
    preprocessing, tokenizer = description["preprocessing"], description["tokenizer"]
    if preprocessing.get("kind") == "emoji":
        preprocess: Callable[..., Any] = emoji_image
    else:
        preprocess = image_transform_v2(PreprocessCfg(**_tuples(preprocessing)), is_train=False)
    if tokenizer["kind"] == "emoji":
        return preprocess, EmojiTokenizer()
    length, options = tokenizer["context_length"], tokenizer["options"]
    if tokenizer["kind"] == "hf":
        return preprocess, hf_tokenizer(str(files), length, tokenizer.get("mode"), options)
    return preprocess, SimpleTokenizer(context_length=length, **options)


def _tuples(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the tuples that open_clip holds, which JSON wrote as lists."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in config.items()}
