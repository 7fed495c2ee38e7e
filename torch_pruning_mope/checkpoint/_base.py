"""What a model was before pruning, said so completely that it can be built again without a network."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from .._io import located
from ..errors import ModelLoadError
from ..loading import LoadedModel
from . import _open_clip, _transformers
from ._files import BASE
from ._spec import Spec

_KINDS: Mapping[str, Any] = {"open_clip": _open_clip, "transformers": _transformers}


@dataclass(frozen=True)
class Base:
    """A model without weights.

    Attributes:
        description: As JSON; its ``kind`` says who builds it: open_clip, transformers or (``given``) the user.
        files: What belongs to it besides, of the tokenizer mostly, by name: content, or the checkpoint that holds it.
        spec: What was left of it when the model was loaded from a checkpoint, or None.
    """

    description: dict[str, Any]
    files: Mapping[str, bytes | Path] = field(default_factory=dict)
    spec: Spec | None = None

    def read(self) -> dict[str, bytes]:
        """The files.

        Returns:
            Content by name.

        Raises:
            OSError: If one is no longer there.
        """
        return {
            name: content if isinstance(content, bytes) else located(content, f"{BASE}/{name}").read_bytes()
            for name, content in self.files.items()
        }

    @property
    def is_given(self) -> bool:
        """Whether only the user can build it."""
        return str(self.description["kind"]) == "given"


def describe(base: str | None, model: nn.Module, cache: str | None) -> Base:
    """What a model was before pruning.

    Args:
        base: A name that :func:`torch_pruning_mope.load_model` takes, but no checkpoint of this package; or None.
        model: The pruned model.
        cache: Where downloads are kept.

    Returns:
        Its base.

    Raises:
        ModelLoadError: If the name is of no model, or what belongs to it cannot be had.
    """
    if _transformers.is_of(model):
        return Base(*_transformers.describe(base, model, cache))
    if base is None and _open_clip.is_tiny(model):
        base = "tiny"
    if base is not None:
        return Base(*_open_clip.describe(base, model, cache))
    return Base({"kind": "given", "class": f"{type(model).__module__}.{type(model).__qualname__}"})


def check(description: Any) -> dict[str, Any]:
    """Looks at a description without trust.

    Args:
        description: Parsed JSON.

    Returns:
        The description.

    Raises:
        ModelLoadError: If it is none.
    """
    kind = description.get("kind") if isinstance(description, dict) else None
    if kind == "given" and isinstance(description.get("class"), str):
        return dict(description)
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ModelLoadError(f"base.kind must be one of given, {', '.join(_KINDS)}; found {kind!r:.80}.")
    if not isinstance(description.get("name"), str | None):
        raise ModelLoadError(f"base.name must be a text or null, found {description.get('name')!r:.80}.")
    _KINDS[kind].check(description)
    return dict(description)


def build(description: dict[str, Any], folder: Path) -> nn.Module:
    """The model that a description is of; call it where parameters go to the ``meta`` device.

    Args:
        description: The description, checked.
        folder: The checkpoint.

    Returns:
        The model.

    Raises:
        ModelLoadError: If it cannot be built.
    """
    if description["kind"] == "given":
        raise ModelLoadError(
            f"model must be given, found none: this checkpoint is of a {description['class']}, which only you can build. Pass "
            "DualEncoder.from_pretrained(path, model=...) one with any weights, as it was before it was wrapped."
        )
    try:
        model: nn.Module = _KINDS[description["kind"]].build(description, located(folder, BASE))
    except ModelLoadError:
        raise
    except Exception as error:  # libraries raise what they like about a configuration
        raise ModelLoadError(
            f"base must be a model that the installed libraries can build, found: {type(error).__name__}: {error}."
        ) from error
    return model


def inputs(description: dict[str, Any], folder: Path, model: nn.Module) -> LoadedModel:
    """A model with its preprocessing and its tokenizer.

    Args:
        description: The description of its base, checked.
        folder: The checkpoint.
        model: The model.

    Returns:
        The three.

    Raises:
        ModelLoadError: If the checkpoint does not hold them.
    """
    if description["kind"] == "given":
        raise ModelLoadError(
            "a checkpoint must know its preprocessing and tokenizer to be loaded with them, found one of a model of your own. "
            "Load it with DualEncoder.from_pretrained(path, model=...)."
        )
    try:
        found = _KINDS[description["kind"]].inputs(description, located(folder, BASE))
    except ModelLoadError:
        raise
    except Exception as error:
        raise ModelLoadError(
            f"base must have a preprocessing and a tokenizer, found: {type(error).__name__}: {error}."
        ) from error
    return LoadedModel(model, *found)
