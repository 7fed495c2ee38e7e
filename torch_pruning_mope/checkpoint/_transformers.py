"""Bases of transformers: models describe themselves; preprocessing and tokenizer are files."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import ModelLoadError
from ..loading._transformers import ImageProcessor, TextTokenizer, check_words, text_tokenizer
from ._json import parse
from ._limits import check_limits
from ._open_clip import saved

_OURS = "config.json"
_FOREIGN = {"auto_map", "quantization_config", "attn_implementation", "transformers_version"}
"""What a configuration may hold that has code or files loaded."""


def is_of(model: nn.Module) -> bool:
    """Whether a model is of transformers."""
    return type(model).__module__.startswith("transformers.") and hasattr(model, "config")


def describe(name: str | None, model: Any, cache: str | None) -> tuple[dict[str, Any], dict[str, bytes]]:
    """What a model of transformers was before pruning.

    Args:
        name: As :func:`torch_pruning_mope.load_model` takes it, for preprocessing and tokenizer; None to go without.
        model: The pruned model.
        cache: Where downloads are kept.

    Returns:
        A description, and files that belong to it.

    Raises:
        ModelLoadError: If the preprocessing or the tokenizer cannot be had.
    """
    import transformers

    files = saved(model.config)
    if name is not None:
        source = name.removeprefix("hf:")
        folder = Path(source).expanduser()
        source = str(folder) if folder.is_dir() else source
        try:
            files |= saved(transformers.AutoImageProcessor.from_pretrained(source, cache_dir=cache))
            tokenizer = transformers.AutoTokenizer.from_pretrained(source, cache_dir=cache)
        except Exception as error:
            raise ModelLoadError(
                f"base: {name!r} must be a model of transformers whose preprocessing and tokenizer can be had, found: "
                f"{type(error).__name__}: {error}; connect to the network, or pass the cache_dir that holds them"
            ) from error
        check_words(tokenizer)
        files |= {name: data for name, data in saved(tokenizer).items() if name != _OURS}
    description = {
        "kind": "transformers",
        "name": name,
        "class": type(model).__name__,
        "attention": model.config._attn_implementation,
        "architecture": json.loads(files[_OURS]),
    }
    return json.loads(json.dumps(description)), files


def check(description: Mapping[str, Any]) -> None:
    """Looks at a description without trust.

    Args:
        description: Parsed JSON.

    Raises:
        ModelLoadError: If it is not of a model of transformers, or of none of a reasonable size.
    """
    architecture = description.get("architecture")
    if not isinstance(architecture, dict) or not isinstance(architecture.get("model_type"), str):
        raise ModelLoadError(f"base.architecture must be an object with a model_type, found {architecture!r:.80}.")
    if description.get("attention") not in {"sdpa", "eager"}:
        raise ModelLoadError(f"base.attention must be sdpa or eager, found {description.get('attention')!r:.80}.")
    check_limits(architecture, "base.architecture")


def build(description: Mapping[str, Any], files: Path) -> nn.Module:  # noqa: ARG001
    """The model.

    Args:
        description: The description, checked.
        files: Not needed.

    Returns:
        The model.

    Raises:
        ModelLoadError: If it is no dual encoder of the installed transformers.
    """
    import transformers

    options = {
        key: value for key, value in description["architecture"].items() if key not in _FOREIGN and key[:1] != "_"
    }
    kind = options.pop("model_type")
    config = transformers.AutoConfig.for_model(kind, **options)
    architecture: Any = transformers.MODEL_MAPPING.get(type(config), None)
    if architecture is None or architecture.__name__ != description["class"]:
        raise ModelLoadError(f"base.class must be the model of {kind!r:.80}, found {description['class']!r:.80}.")
    return architecture._from_config(config, attn_implementation=description["attention"])  # type: ignore[no-any-return]


def inputs(description: Mapping[str, Any], files: Path) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Preprocessing and tokenizer.

    Args:
        description: The description, checked.
        files: Where their files are.

    Returns:
        Both.

    Raises:
        ModelLoadError: If the checkpoint was saved without them.
    """
    import transformers

    if description["name"] is None:
        raise ModelLoadError(
            "a checkpoint must hold preprocessing and tokenizer to be loaded with them, found one without. Load it with "
            "DualEncoder.from_pretrained, or save it with base=, the name of the model that it was made from."
        )
    config = transformers.AutoConfig.from_pretrained(files)
    parse((files / _OURS).read_bytes(), f"base/{_OURS}")
    preprocess = ImageProcessor(transformers.AutoImageProcessor.from_pretrained(files))
    words = transformers.AutoTokenizer.from_pretrained(files)
    tokenizer: TextTokenizer = text_tokenizer(words, config)
    return preprocess, tokenizer
