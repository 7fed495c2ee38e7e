"""Door to open_clip: configurations and models, of which no code is ever run."""

import copy
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from reprlib import repr as short
from typing import Any

import open_clip
from huggingface_hub import hf_hub_download
from open_clip.coca_model import CoCa
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.tokenizer import HFTokenizer
from torch import nn

from .._io import read_json
from ..errors import ModelLoadError, MopeError
from ._limits import check_limits
from ._loaded import NETWORK, LoadedModel, failure
from ._names import OPEN_CLIP_CONFIG, ModelName, wrong_weights
from ._transformers import check_words, read_config

PREPROCESSING = {
    "mean": "image_mean",
    "std": "image_std",
    "interpolation": "image_interpolation",
    "resize_mode": "image_resize_mode",
}
"""Options of a pretrained tag by the name that open_clip's factory gives them."""
TOKENIZER_OPTIONS = {"clean", "strip_sep_token", "reduction_mask", "additional_special_tokens", "language"}
"""Options of tokenizers that a configuration may set."""
_MOST_CONFIG = 2**20
_NAME = re.compile(r"[A-Za-z0-9_.\-]+")


def load_architecture(name: ModelName, cache: str | None) -> LoadedModel:
    """Loads an architecture with a tag, a file, or random weights and a warning."""
    architecture, weights = name.source, name.weights
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if weights is None:
        warnings.warn(
            f"name: {name.text!r} has no weights, so they are random; write {architecture}@TAG or {architecture}@FILE for "
            f"trained ones. Tags: {', '.join(tags) or 'none'}",
            stacklevel=4,
        )
        return load_parts(name, cache, NETWORK, random=True, **(_preprocessing(architecture) or {}))
    if open_clip.is_pretrained_cfg(architecture, weights):
        quick = bool(open_clip.get_pretrained_cfg(architecture, weights).get("quick_gelu"))
        return load_parts(name, cache, NETWORK, pretrained=weights, force_quick_gelu=quick)
    file = Path(weights).expanduser()
    if not weights or not file.is_file():
        raise ModelLoadError(wrong_weights(architecture, weights, tags))
    preprocessing = _preprocessing(architecture)
    if preprocessing is None:
        warnings.warn(
            f"name: the pretrained tags of {architecture} differ in how they prepare images, so {name.text!r} gets "
            f"open_clip's default; if that is wrong, load a folder with the file and an {OPEN_CLIP_CONFIG}",
            stacklevel=4,
        )
    mend = f"pass weights of {architecture}, saved as a state dict, best with safetensors"
    return load_parts(name, cache, mend, pretrained=str(file), **(preprocessing or {}))


def load_parts(name: ModelName, cache: str | None, mend: str, *, random: bool = False, **options: Any) -> LoadedModel:
    """Loads the parts; every error of the library becomes one that ends with ``mend``."""
    identifier = _identifier(name)
    try:
        config = read_architecture(name, cache)
        with _towers(config, None, cache) as towers:
            if random:
                model, _, preprocess = open_clip.create_model_and_transforms(
                    identifier, cache_dir=cache, **options, **towers
                )
            else:  # raises where no weights are found; the other goes on with random ones
                model, preprocess = open_clip.create_model_from_pretrained(
                    identifier, cache_dir=cache, **options, **towers
                )
        tokenizer = read_open_clip_tokenizer(name, config, cache)
    except MopeError:
        raise
    except Exception as error:
        raise failure(name.text, error, mend) from error
    return LoadedModel(model, preprocess, tokenizer)


def read_architecture(name: ModelName, cache: str | None) -> dict[str, Any]:
    """Reads open_clip's configuration of an architecture, folder or repository."""
    if name.form == "architecture":
        config: dict[str, Any] = open_clip.get_model_config(name.source)
        if open_clip.is_pretrained_cfg(name.source, name.weights or ""):
            quick = open_clip.get_pretrained_cfg(name.source, name.weights).get("quick_gelu")
            config = {**config, "quick_gelu": True} if quick else config
        return config
    if name.form == "hf-hub":
        file = Path(hf_hub_download(name.source, OPEN_CLIP_CONFIG, cache_dir=cache))
    else:
        folder = Path(name.source).expanduser()
        if not folder.is_dir():
            raise ModelLoadError(f"name: {name.text!r} must name a folder, found none; correct the path")
        file = folder / OPEN_CLIP_CONFIG
    content = read_json(file, _MOST_CONFIG)
    config = content.get("model_cfg") if isinstance(content, dict) else None  # type: ignore[assignment]
    check_architecture(config, "model_cfg")
    return config


def check_architecture(config: Any, where: str) -> None:
    """Checks a configuration of unknown origin."""
    if not isinstance(config, dict):
        raise ModelLoadError(f"{where} must be an object; found {short(config)}.")
    for name in ("vision_cfg", "text_cfg"):
        if not isinstance(config.get(name), dict):
            raise ModelLoadError(f"{where}.{name} must be an object; found {short(config.get(name))}.")
    vision, text = config["vision_cfg"], config["text_cfg"]
    trunk = vision.get("timm_model_name", "none")
    if not isinstance(trunk, str) or not _NAME.fullmatch(trunk):
        raise ModelLoadError(f"{where}.vision_cfg.timm_model_name must be a name of timm's; found {short(trunk)}.")
    check_tokenizer_options(text.get("tokenizer_kwargs", {}), f"{where}.text_cfg.tokenizer_kwargs")
    own = {key: value for key, value in text.items() if key not in {"hf_model_name", "hf_tokenizer_name"}}
    check_limits({**config, "text_cfg": own}, where)


def check_tokenizer_options(options: Any, where: str) -> None:
    """Checks keyword arguments of a tokenizer."""
    if not isinstance(options, dict) or not set(options) <= TOKENIZER_OPTIONS:
        found = sorted(options) if isinstance(options, dict) else options
        raise ModelLoadError(f"{where} must be some of {sorted(TOKENIZER_OPTIONS)}; found {short(found)}.")


def read_open_clip_tokenizer(name: ModelName, config: Mapping[str, Any], cache: str | None) -> Any:
    """Reads the tokenizer of a checked configuration."""
    options = {"trust_remote_code": False} if config["text_cfg"].get("hf_tokenizer_name") else {}
    tokenizer = open_clip.get_tokenizer(_identifier(name), cache_dir=cache, **options)
    if isinstance(tokenizer, HFTokenizer):
        check_words(tokenizer.tokenizer)
    return tokenizer


def hf_tokenizer(source: str, length: int, mode: str | None, options: Mapping[str, Any]) -> HFTokenizer:
    """Reads open_clip's wrapper of a tokenizer of transformers."""
    tokenizer = HFTokenizer(source, context_length=length, tokenizer_mode=mode, trust_remote_code=False, **options)
    check_words(tokenizer.tokenizer)
    return tokenizer


def build_architecture(config: Mapping[str, Any], texts: str | None = None) -> nn.Module:
    """Builds a model of random weights."""
    own: dict[str, Any] = copy.deepcopy(dict(config))
    custom = own.pop("custom_text", False) or "hf_model_name" in own["text_cfg"]
    kind = (CoCa if "multimodal_cfg" in own else CustomTextCLIP) if custom else CLIP
    with _towers(own, texts, None) as towers:
        model: nn.Module = kind(**own | towers)
    return model


@contextmanager
def _towers(config: Mapping[str, Any], texts: str | None, cache: str | None) -> Iterator[dict[str, Any]]:
    """Configurations of the towers that load no weights, and none but a plain configuration of a text encoder."""
    vision, text = dict(config["vision_cfg"]), dict(config["text_cfg"])
    if "timm_model_name" in vision:
        vision["timm_model_pretrained"] = False
    with tempfile.TemporaryDirectory() as folder:
        if "hf_model_name" in text:  # open_clip would let transformers ask whether to run code
            read_config(texts or text["hf_model_name"], cache).save_pretrained(folder)
            text |= {"hf_model_name": folder, "hf_model_pretrained": False}
        yield {"vision_cfg": vision, "text_cfg": text}


def _preprocessing(architecture: str) -> dict[str, Any] | None:
    """Returns the options that all pretrained tags share; none if there are no tags, and None if they differ."""
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    configs = [open_clip.get_pretrained_cfg(architecture, tag) for tag in tags]
    found = [{option: config.get(key) for key, option in PREPROCESSING.items()} for config in configs]
    if any(options != found[0] for options in found):
        return None
    return found[0] if found else {}


def _identifier(name: ModelName) -> str:
    """Returns the name in open_clip's grammar, which knows no bare folders."""
    if name.form == "architecture":
        return name.source
    return f"hf-hub:{name.source}" if name.form == "hf-hub" else f"local-dir:{Path(name.source).expanduser()}"
