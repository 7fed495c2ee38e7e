"""Dual encoders of open_clip."""

import warnings
from pathlib import Path
from typing import Any

import open_clip
from open_clip.tokenizer import HFTokenizer

from ..errors import ModelLoadError, MopeError
from ._failures import NETWORK, failure, holds
from ._loaded import LoadedModel
from ._names import OPEN_CLIP_CONFIG, TRANSFORMERS_CONFIG, ModelName, wrong_weights
from ._transformers import check_words

PREPROCESSING = {
    "mean": "image_mean",
    "std": "image_std",
    "interpolation": "image_interpolation",
    "resize_mode": "image_resize_mode",
}  # from what a pretrained tag calls it to what open_clip's factory calls it


def load_architecture(name: ModelName, cache: str | None) -> LoadedModel:
    """Loads an architecture with a tag, a file, or random weights and a warning.

    Args:
        name: The name.
        cache: Folder of downloads; None for open_clip's own.

    Returns:
        The three parts.

    Raises:
        ModelLoadError: If there are no such weights, or they do not fit.
    """
    architecture, weights = name.source, name.weights
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if weights is None:
        warnings.warn(
            f"name: {name.text!r} has no weights, so they are random; write {architecture}@TAG or {architecture}@FILE for "
            f"trained ones. Tags: {', '.join(tags) or 'none'}",
            stacklevel=4,
        )
        options = {"pretrained_text": False, **(_preprocessing(architecture) or {})}
        return _load(name.text, architecture, cache, NETWORK, random=True, **options)
    if open_clip.is_pretrained_cfg(architecture, weights):
        quick = bool(open_clip.get_pretrained_cfg(architecture, weights).get("quick_gelu"))
        return _load(name.text, architecture, cache, NETWORK, pretrained=weights, force_quick_gelu=quick)
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
    return _load(name.text, architecture, cache, mend, pretrained=str(file), **(preprocessing or {}))


def load_folder(name: ModelName, mend: str) -> LoadedModel:
    """Loads a folder in open_clip's form."""
    return _load(name.text, f"local-dir:{Path(name.source).expanduser()}", None, mend)


def load_hub(name: ModelName, cache: str | None) -> LoadedModel:
    """Loads a repository of the Hub in open_clip's form.

    Args:
        name: The name.
        cache: Folder of downloads.

    Returns:
        The three parts.

    Raises:
        ModelLoadError: If it cannot be had, or is in transformers' form.
    """
    repository = name.source
    try:
        return _load(name.text, f"hf-hub:{repository}", cache, NETWORK)
    except ModelLoadError as error:
        if holds(repository, OPEN_CLIP_CONFIG, cache, error) or not holds(
            repository, TRANSFORMERS_CONFIG, cache, error
        ):
            raise
        raise ModelLoadError(
            f"name: hf-hub: must be followed by a repository in open_clip's form, found {repository} in the form of "
            f"transformers; write hf:{repository}"
        ) from error


def _preprocessing(architecture: str) -> dict[str, Any] | None:
    """The options that all pretrained tags share; none if there are no tags, and None if they differ."""
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    configs = [open_clip.get_pretrained_cfg(architecture, tag) for tag in tags]
    found = [{option: config.get(key) for key, option in PREPROCESSING.items()} for config in configs]
    if any(options != found[0] for options in found):
        return None
    return found[0] if found else {}


def _load(
    name: str, identifier: str, cache: str | None, mend: str, *, random: bool = False, **options: Any
) -> LoadedModel:
    try:
        if random:
            model, _, preprocess = open_clip.create_model_and_transforms(identifier, cache_dir=cache, **options)
        else:  # raises where no weights are found; the other goes on with random ones
            model, preprocess = open_clip.create_model_from_pretrained(identifier, cache_dir=cache, **options)
        tokenizer = open_clip.get_tokenizer(identifier, cache_dir=cache)
        if isinstance(tokenizer, HFTokenizer):
            check_words(tokenizer.tokenizer)
    except MopeError:
        raise
    except Exception as error:
        raise failure(name, error, mend) from error
    return LoadedModel(model, preprocess, tokenizer)
