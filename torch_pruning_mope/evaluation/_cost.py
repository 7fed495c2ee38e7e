"""Cost of any model that can be evaluated: parameters, multiply-adds, seconds."""

import torch
from torch import Tensor, nn

from .._state import evaluation_mode
from ..cost import count_multiply_adds, median_seconds
from ..dual_encoder import DualEncoder
from ._open_clip import OpenClipModel


def parameters(model: DualEncoder | nn.Module) -> int:
    """All parameters, token embeddings included."""
    module = model.model if isinstance(model, DualEncoder) else model
    return sum(parameter.numel() for parameter in module.parameters())


@torch.no_grad()
def multiply_adds(model: DualEncoder | nn.Module, inputs: tuple[Tensor, Tensor] | None = None) -> int:
    """Multiply-adds of every convolution and matrix product for one image and one caption of full length."""
    images, tokens = _inputs(model, inputs)
    encoders = OpenClipModel(model)
    with evaluation_mode(encoders.model):
        of_image = count_multiply_adds(lambda: encoders.encode("image", images))
        return of_image + count_multiply_adds(lambda: encoders.encode("text", tokens))


@torch.inference_mode()
def latency(
    model: DualEncoder | nn.Module,
    inputs: tuple[Tensor, Tensor] | None = None,
    *,
    batch_size: int = 1,
    repeats: int = 15,
) -> float:
    """Median seconds for images and as many captions of full length, on the model's own device."""
    if batch_size < 1 or repeats < 1:
        raise ValueError(f"batch_size and repeats must be at least 1; found {batch_size} and {repeats}.")
    encoders = OpenClipModel(model)
    images, tokens = (
        found.to(encoders.device).expand(batch_size, *found.shape[1:]).contiguous() for found in _inputs(model, inputs)
    )

    def both() -> None:
        encoders.encode("image", images)
        encoders.encode("text", tokens)

    with evaluation_mode(encoders.model):
        return median_seconds(both, encoders.device, repeats=repeats)


def _inputs(model: DualEncoder | nn.Module, inputs: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
    if inputs is not None:
        return inputs
    if not isinstance(model, DualEncoder):
        raise ValueError(
            "inputs must be one image and one caption unless the model is wrapped; found none. Give (images, tokens), as "
            "preprocess and tokenizer make them."
        )
    examples = model.example_inputs
    return examples["images"], examples["tokens"]
