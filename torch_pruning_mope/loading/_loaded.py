"""The three parts of a loaded model, those of the tiny CLIP, and one error for all that libraries raise while they load."""

import pickle
import textwrap
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor, nn

from ..data import EmojiTokenizer, load_tiny_clip
from ..errors import ModelLoadError

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


def load_tiny() -> LoadedModel:
    """Returns the tiny CLIP with its inputs."""
    return LoadedModel(load_tiny_clip(), emoji_image, EmojiTokenizer())


def emoji_image(image: Image.Image) -> Float[Tensor, "3 64 64"]:
    """Returns the picture as :func:`emoji_pairs` has it, cut to a square from its middle and resized if need be."""
    square = ImageOps.fit(image.convert("RGB"), (64, 64), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1).contiguous().float() / 127.5 - 1.0
