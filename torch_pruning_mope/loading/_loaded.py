"""The three parts of a loaded model."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from PIL import Image
from torch import Tensor, nn


class LoadedModel(NamedTuple):
    """A dual encoder, its preprocessing and its tokenizer."""

    model: nn.Module
    preprocess: Callable[[Image.Image], Tensor]
    """From a picture to `[C, H, W]`, as in evaluation: without random augmentation."""
    tokenizer: Callable[[str | Sequence[str]], Tensor]
    """From captions to integers `[N, context]`, padded and cut to the model's context."""
