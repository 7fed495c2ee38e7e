"""Bases of transformers: models describe themselves; preprocessing and tokenizer are files."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from reprlib import repr as short
from typing import Any

from torch import nn

from .._io import parse_json
from ..errors import ModelLoadError
from ..loading import ModelName
from ..loading._limits import check_limits
from ..loading._transformers import (
    ATTENTION,
    build_config,
    build_model,
    read_config,
    read_processor,
    read_tokenizer,
    saved,
    text_tokenizer,
)

_OURS = "config.json"


def describe(name: ModelName | None, model: Any, cache: str | None) -> tuple[dict[str, Any], dict[str, bytes]]:
    """A description of a model as it was before pruning, and the files of its preprocessing and tokenizer, if it has a name."""
    files = saved(model.config)
    if name is not None:
        source = name.source if name.folder is None else str(name.folder)
        files |= saved(read_processor(source, cache).processor)
        tokenizer = saved(read_tokenizer(source, cache))
        files |= {file: data for file, data in tokenizer.items() if file != _OURS}
    description = {
        "kind": "transformers",
        "name": None if name is None else name.label,
        "class": type(model).__name__,
        "attention": model.config._attn_implementation,
        "architecture": parse_json(files[_OURS]),
    }
    return parse_json(json.dumps(description)), files


def check(description: Mapping[str, Any]) -> None:
    """Checks a description of unknown origin."""
    architecture = description.get("architecture")
    if not isinstance(architecture, dict) or not isinstance(architecture.get("model_type"), str):
        raise ModelLoadError(f"base.architecture must be an object with a model_type; found {short(architecture)}.")
    if description.get("attention") not in ATTENTION:
        raise ModelLoadError(f"base.attention must be sdpa or eager; found {short(description.get('attention'))}.")
    check_limits(architecture, "base.architecture")


def build(description: Mapping[str, Any], files: Path) -> nn.Module:  # noqa: ARG001  (open_clip's needs them)
    """Returns the model of a checked description, with random weights."""
    config = build_config(description["architecture"])
    return build_model(config, description["class"], description["attention"])


def inputs(description: Mapping[str, Any], files: Path) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Preprocessing and tokenizer of a checked description; raises ModelLoadError if it was saved without them."""
    if description["name"] is None:
        raise ModelLoadError(
            "a checkpoint must hold preprocessing and tokenizer to be loaded with them; found one without. Load it with "
            "DualEncoder.from_pretrained, or save it with base=, the name of the model that it was made from."
        )
    config = read_config(str(files))
    return read_processor(str(files)), text_tokenizer(read_tokenizer(str(files)), config)
