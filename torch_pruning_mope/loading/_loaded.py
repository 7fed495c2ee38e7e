"""The three parts of a loaded model, and those of the tiny CLIP that ships with the package."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor, nn

from ..data import EmojiTokenizer, load_tiny_clip


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
