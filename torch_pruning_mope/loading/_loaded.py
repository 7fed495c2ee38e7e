"""Loading by name from the libraries' own formats, the tiny CLIP and exported folders; one error for all that they raise."""

import pickle
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor, nn

from ..data import EmojiTokenizer, load_tiny_clip
from ..errors import ModelLoadError, MopeError
from ..runtime import ExportedModel
from ._names import ModelName, folder_form
from ._transformers import load_transformers

NETWORK = "connect to the network, or pass the cache_dir that holds it"


def failure(name: str, error: Exception, mend: str) -> ModelLoadError:
    """Returns the error for a name whose library raised ``error``."""
    if isinstance(error, ImportError):
        mend = "pip install torch-pruning-mope[transformers]"
    return ModelLoadError(f"name: {name!r} must be a model that can be loaded, found: {_reason(error)}; {mend}")


def _reason(error: Exception) -> str:
    """Returns the error and its root cause, in one line."""
    root: BaseException = error
    while (cause := root.__cause__ or root.__context__) is not None:
        root = cause
    if isinstance(root, pickle.UnpicklingError):
        return "a file of more than tensors, or no checkpoint; unpickling it is refused, since that can run code"
    text = textwrap.shorten(str(error) or type(error).__name__, 300, placeholder=" …")
    return text if root is error else f"{text} ({type(root).__name__}: {textwrap.shorten(str(root), 200)})"


class LoadedModel(NamedTuple):
    """A dual encoder, its preprocessing and its tokenizer."""

    model: nn.Module
    preprocess: Callable[[Image.Image], Tensor]
    """From a picture to `[C, H, W]`, as in evaluation: without random augmentation."""
    tokenizer: Callable[[str | Sequence[str]], Tensor]
    """From captions to integers `[N, context]`, padded and cut to the model's context."""


def emoji_image(image: Image.Image) -> Float[Tensor, "3 64 64"]:
    """Returns the picture as :func:`emoji_pairs` has it, cut to a square from its middle and resized if need be."""
    square = ImageOps.fit(image.convert("RGB"), (64, 64), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1).contiguous().float() / 127.5 - 1.0


class ExportedEncoder(nn.Module):
    """Both encoders of an exported folder, run by onnxruntime on the CPU; it cannot be wrapped, pruned or trained."""

    def __init__(self, exported: ExportedModel) -> None:
        super().__init__()
        self.exported = exported
        self.anchor = nn.Parameter(torch.zeros(1), requires_grad=False)  # tells the device that results go to

    @property
    def sizes(self) -> dict[str, int]:
        """Parameters of the model that was exported, and bytes of its files."""
        about = self.exported.about
        return {"parameters": about["parameters"], "bytes": sum(entry["bytes"] for entry in about["files"].values())}

    def encode_image(self, images: Tensor) -> Tensor:
        """Embeds images ``[N, C, H, W]``."""
        return self._tensor(self.exported.encode_image(images.cpu().numpy()))

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Embeds token ids ``[N, T]``."""
        return self._tensor(self.exported.encode_text(tokens.cpu().numpy()))

    def _tensor(self, found: Any) -> Tensor:
        return torch.from_numpy(found).to(self.anchor.device)


@dataclass(frozen=True)
class _AsTensor:
    """A method of an exported model that returns tensors; a class, for the sake of workers that get a copy."""

    exported: ExportedModel
    method: str

    def __call__(self, inputs: Any) -> Tensor:
        return torch.from_numpy(getattr(self.exported, self.method)(inputs))


def load_named(
    name: ModelName, *, device: str | torch.device = "cpu", cache_dir: str | Path | None = None
) -> LoadedModel:
    """Loads a model that is no checkpoint of this package; see :func:`torch_pruning_mope.load_model`."""
    cache = None if cache_dir is None else str(Path(cache_dir).expanduser())
    loaded = _load(name, cache)
    return loaded._replace(model=loaded.model.eval().to(device))


def _load(name: ModelName, cache: str | None) -> LoadedModel:
    form: str = name.form
    if form == "tiny":
        return LoadedModel(load_tiny_clip(), emoji_image, EmojiTokenizer())
    if form == "mope":
        raise ModelLoadError(f"name: must be a model of a library, found {name.text!r}; load it with load_model")
    if form == "folder":
        form = folder_form(name.text, Path(name.source).expanduser())
    if form == "exported":
        exported = ExportedModel(Path(name.source).expanduser())
        return LoadedModel(
            ExportedEncoder(exported), _AsTensor(exported, "preprocess"), _AsTensor(exported, "tokenizer")
        )
    if form == "hf":
        return _transformers(name, cache)
    from . import _open_clip  # slow to import

    if form == "architecture":
        return _open_clip.load_architecture(name, cache)
    if form == "hf-hub":
        return _open_clip.load_parts(name, cache, f"{NETWORK}; write hf:{name.source} if it is in transformers' form")
    return _open_clip.load_parts(name, None, _incomplete(name.source))


def _transformers(name: ModelName, cache: str | None) -> LoadedModel:
    source, folder = name.source, name.folder
    try:
        return LoadedModel(*load_transformers(source if folder is None else str(folder), cache))
    except MopeError:
        raise
    except Exception as error:
        hub = f"{NETWORK}; write hf-hub:{source} if it is in open_clip's form"
        raise failure(name.text, error, hub if folder is None else _incomplete(source)) from error


def _incomplete(folder: str) -> str:
    return f"complete {folder}: it needs weights, configuration and tokenizer, as the library that wrote it saves them"
