"""Bases of open_clip: its configuration of the architecture, of the preprocessing, and its tokenizer."""

import copy
import json
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import open_clip
from huggingface_hub import hf_hub_download
from open_clip.coca_model import CoCa
from open_clip.model import CLIP, CustomTextCLIP, set_model_preprocess_cfg
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict
from torch import nn

from ..data import EmojiTokenizer, tiny_clip_config
from ..errors import ModelLoadError
from ..loading import OPEN_CLIP_CONFIG, emoji_image
from ._limits import check_limits

_OPTIONS = {"clean", "strip_sep_token", "reduction_mask", "additional_special_tokens", "language"}
"""Of a tokenizer, in a configuration of open_clip."""
_NAME = re.compile(r"[A-Za-z0-9_.\-]+")


def is_tiny(model: nn.Module) -> bool:
    """Whether a model is an embedded tiny CLIP: no other has its vocabulary and context."""
    text = tiny_clip_config()["text_cfg"]
    table = getattr(model, "token_embedding", None)
    return (
        type(model) is CLIP
        and isinstance(table, nn.Embedding)
        and (table.num_embeddings, model.context_length) == (text["vocab_size"], text["context_length"])
    )


def describe(name: str, model: nn.Module, cache: str | None) -> tuple[dict[str, Any], dict[str, bytes]]:
    """What a model of open_clip was before pruning.

    Args:
        name: As :func:`torch_pruning_mope.load_model` takes it.
        model: The pruned model.
        cache: Where downloads are kept.

    Returns:
        A description, and files that belong to it.

    Raises:
        ModelLoadError: If the name is of no model, or its tokenizer cannot be had.
    """
    visual: Any = getattr(model, "visual", None)
    preprocessing = getattr(visual, "preprocess_cfg", None)
    files: dict[str, bytes] = {}
    if name == "tiny":
        architecture, tokenizer = tiny_clip_config(), {"kind": "emoji"}
        preprocessing = {"kind": "emoji"}
    else:
        try:
            architecture, identifier = _architecture(name, cache)
            tokenizer, files = _tokenizer(
                architecture["text_cfg"], open_clip.get_tokenizer(identifier, cache_dir=cache)
            )
        except ModelLoadError:
            raise
        except Exception as error:
            raise ModelLoadError(
                f"base: {name!r} must be a model whose configuration and tokenizer can be had, found: "
                f"{type(error).__name__}: {error}; connect to the network, or pass the cache_dir that holds them"
            ) from error
    if "hf_model_name" in architecture["text_cfg"]:
        files |= saved(model.text.config)  # type: ignore[union-attr]
    description = {
        "kind": "open_clip",
        "name": name,
        "architecture": architecture,
        "preprocessing": preprocessing or merge_preprocess_dict(PreprocessCfg(), {"size": visual.image_size}),
        "tokenizer": tokenizer,
    }
    return json.loads(json.dumps(description)), files


def _architecture(name: str, cache: str | None) -> tuple[dict[str, Any], str]:
    """The configuration that a name stands for, and what open_clip calls it.

    Returns:
        Both.

    Raises:
        ModelLoadError: If it stands for none.
    """
    prefix, _, rest = name.partition(":")
    file: Path | None = None
    if prefix == "hf-hub":
        file = Path(hf_hub_download(rest, OPEN_CLIP_CONFIG, cache_dir=cache))
    elif prefix == "local-dir" or Path(name).expanduser().is_dir():
        folder = Path(rest if prefix == "local-dir" else name).expanduser()
        name, file = f"local-dir:{folder}", folder / OPEN_CLIP_CONFIG
    if file is not None:
        config: dict[str, Any] = json.loads(file.read_text("utf-8"))["model_cfg"]
        return config, name
    architecture, _, tag = name.partition("@")
    architecture = architecture.replace("/", "-")
    found = open_clip.get_model_config(architecture)
    if found is None:
        raise ModelLoadError(f"base must be a name that load_model takes, found {name!r}; see there for what it takes")
    config = copy.deepcopy(found)
    if open_clip.is_pretrained_cfg(architecture, tag) and open_clip.get_pretrained_cfg(architecture, tag).get(
        "quick_gelu"
    ):
        config["quick_gelu"] = True
    return config, architecture


def _tokenizer(text: Mapping[str, Any], tokenizer: Any) -> tuple[dict[str, Any], dict[str, bytes]]:
    """What a tokenizer is made from.

    Returns:
        Its settings, and its files.

    Raises:
        ModelLoadError: If it is of another kind than open_clip's two.
    """
    options = {key: value for key, value in text.get("tokenizer_kwargs", {}).items() if key in _OPTIONS}
    settings = {"context_length": int(tokenizer.context_length), "options": options}
    if isinstance(tokenizer, HFTokenizer):
        return {"kind": "hf", "mode": text.get("tokenizer_mode"), **settings}, saved(tokenizer.tokenizer)
    if isinstance(tokenizer, SimpleTokenizer):
        return {"kind": "simple", **settings}, {}
    raise ModelLoadError(f"base must have a tokenizer of open_clip's, found a {type(tokenizer).__name__}")


def saved(part: Any) -> dict[str, bytes]:
    """What a part of transformers saves of itself, by file name."""
    with tempfile.TemporaryDirectory() as folder:
        part.save_pretrained(folder)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}


def check(description: Mapping[str, Any]) -> None:
    """Looks at a description without trust.

    Args:
        description: Parsed JSON.

    Raises:
        ModelLoadError: If it is not of a model of open_clip, or of none of a reasonable size.
    """
    parts = {name: description.get(name) for name in ("architecture", "preprocessing", "tokenizer")}
    for name, part in parts.items():
        if not isinstance(part, dict):
            raise ModelLoadError(f"base.{name} must be an object, found {part!r:.80}.")
    architecture = description["architecture"]
    for name in ("vision_cfg", "text_cfg"):
        if not isinstance(architecture.get(name), dict):
            raise ModelLoadError(f"base.architecture.{name} must be an object, found {architecture.get(name)!r:.80}.")
    trunk = architecture["vision_cfg"].get("timm_model_name", "none")
    if not isinstance(trunk, str) or not _NAME.fullmatch(trunk):
        raise ModelLoadError(f"base.architecture.vision_cfg.timm_model_name must be a name, found {trunk!r:.80}.")
    own = copy.deepcopy(architecture)
    for name in ("hf_model_name", "hf_tokenizer_name"):
        own["text_cfg"].pop(name, None)  # never looked up: their files are here
    check_limits(own, "base.architecture")
    check_limits(parts["preprocessing"], "base.preprocessing")
    if parts["tokenizer"] is not None:
        check_limits(parts["tokenizer"].get("context_length"), "base.tokenizer.context_length")


def build(description: Mapping[str, Any], files: Path) -> nn.Module:
    """The model.

    Args:
        description: The description, checked.
        files: Where the files are that belong to it.

    Returns:
        The model.
    """
    config: dict[str, Any] = copy.deepcopy(dict(description["architecture"]))
    text, vision = config["text_cfg"], config["vision_cfg"]
    custom = config.pop("custom_text", False) or "hf_model_name" in text
    if "hf_model_name" in text:
        text["hf_model_name"], text["hf_model_pretrained"] = str(files), False
    if "timm_model_name" in vision:
        vision["timm_model_pretrained"] = False
    kind = (CoCa if "multimodal_cfg" in config else CustomTextCLIP) if custom else CLIP
    model: nn.Module = kind(**config)
    if description["preprocessing"].get("kind") != "emoji":
        set_model_preprocess_cfg(model, _tuples(description["preprocessing"]))
    return model


def inputs(description: Mapping[str, Any], files: Path) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Preprocessing and tokenizer.

    Args:
        description: The description, checked.
        files: Where the tokenizer's files are.

    Returns:
        Both.

    Raises:
        ModelLoadError: If one is of an unknown kind.
    """
    preprocessing, tokenizer = description["preprocessing"], description["tokenizer"]
    if preprocessing.get("kind") == "emoji":
        preprocess: Callable[..., Any] = emoji_image
    else:
        preprocess = image_transform_v2(PreprocessCfg(**_tuples(preprocessing)), is_train=False)
    kind = tokenizer.get("kind")
    if kind == "emoji":
        return preprocess, EmojiTokenizer()
    length, options = tokenizer["context_length"], tokenizer["options"]
    if not set(options) <= _OPTIONS:
        raise ModelLoadError(f"base.tokenizer.options must be some of {sorted(_OPTIONS)}, found {sorted(options)}.")
    if kind == "hf":
        mode = tokenizer.get("mode")
        return preprocess, HFTokenizer(str(files), context_length=length, tokenizer_mode=mode, **options)
    if kind == "simple":
        return preprocess, SimpleTokenizer(context_length=length, **options)
    raise ModelLoadError(f"base.tokenizer.kind must be one of emoji, hf, simple; found {kind!r:.80}.")


def _tuples(config: Mapping[str, Any]) -> dict[str, Any]:
    """As open_clip holds it: JSON knows no tuples."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in config.items()}
