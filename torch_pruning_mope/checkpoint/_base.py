"""The model before pruning, described so completely that it can be built again without a network."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from reprlib import repr as short
from typing import Any

from torch import nn

from .._io import located
from ..errors import ModelLoadError
from ..loading import LoadedModel, parse_name

BASE = "base"
"""Folder of the base's files."""


@dataclass(frozen=True)
class Base:
    """A model without weights, as JSON whose ``kind`` says who builds it: open_clip, transformers or (``given``) the user."""

    description: dict[str, Any]
    files: Mapping[str, bytes | Path] = field(default_factory=dict)
    """Files of its tokenizer and processor by name: their content, or the checkpoint that holds them."""

    def read(self) -> dict[str, bytes]:
        """Content of the files by name."""
        return {
            name: content if isinstance(content, bytes) else located(content, f"{BASE}/{name}").read_bytes()
            for name, content in self.files.items()
        }

    @property
    def is_given(self) -> bool:
        """True if only the user can build it."""
        return str(self.description["kind"]) == "given"


def describe(base: str | None, model: nn.Module, cache: str | None) -> Base:
    """Describes a model as it was before pruning."""
    if type(model).__module__.startswith("transformers.") and hasattr(model, "config"):
        kind = "transformers"
    else:
        kind = "open_clip"
        if base is None and _library("open_clip").is_tiny(model):
            base = "tiny"
        if base is None:
            return Base({"kind": "given", "class": f"{type(model).__module__}.{type(model).__qualname__}"})
    try:
        name = None if base is None else parse_name(base)
        return Base(*_library(kind).describe(name, model, cache))
    except ModelLoadError:
        raise
    except Exception as error:  # libraries raise nearly anything
        raise ModelLoadError(
            f"base must be a model whose configuration, preprocessing and tokenizer can be had; found {base!r}: "
            f"{type(error).__name__}: {error}. Connect to the network, or pass the cache_dir that holds them."
        ) from error


def _library(kind: str) -> Any:
    """Returns the module that describes and builds models of a library; the libraries are slow to import."""
    return import_module(f"._{kind}", __package__)


def check(description: Mapping[str, Any]) -> None:
    """Checks a description of unknown origin."""
    kind = description.get("kind")
    if kind == "given" and isinstance(description.get("class"), str):
        return
    if kind not in ("open_clip", "transformers"):
        raise ModelLoadError(f"base.kind must be one of given, open_clip, transformers; found {short(kind)}.")
    if not isinstance(description.get("name"), str | None):
        raise ModelLoadError(f"base.name must be a text or null; found {short(description.get('name'))}.")
    _library(kind).check(description)


def build(description: Mapping[str, Any], folder: Path) -> nn.Module:
    """Builds the model of a checked description, with random weights or none."""
    if description["kind"] == "given":
        raise ModelLoadError(
            f"model must be given; found none, and this checkpoint is of a {description['class']}, which only you can build. "
            "Pass DualEncoder.from_pretrained(path, model=...) one with any weights, as it was before it was wrapped."
        )
    model: nn.Module = _library(description["kind"]).build(description, located(folder, BASE))
    return model


def inputs(description: Mapping[str, Any], folder: Path, model: nn.Module) -> LoadedModel:
    """Adds preprocessing and tokenizer to a model."""
    if description["kind"] == "given":
        raise ModelLoadError(
            "a checkpoint must know its preprocessing and tokenizer to be loaded with them; found one of a model of your own. "
            "Load it with DualEncoder.from_pretrained(path, model=...)."
        )
    return LoadedModel(model, *_library(description["kind"]).inputs(description, located(folder, BASE)))
