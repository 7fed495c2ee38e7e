"""Gradients of the contrastive loss, for the criteria that need them."""

import torch
from torch import Tensor

from ._state import evaluation_mode, own_gradients, trainable
from .data import Pairs
from .encoder import DualEncoder
from .errors import NonFiniteError
from .metrics import contrastive_losses, normalised


def batch_losses(encoder: DualEncoder, images: Tensor, tokens: Tensor) -> Tensor:
    """Contrastive loss of each of a batch of pairs, ``[N]``, differentiable, at the model's own temperature.

    Args:
        encoder: The dual encoder.
        images: One image per pair.
        tokens: Its caption.

    Returns:
        The losses.
    """
    image = normalised(encoder.embed("image", images), "image")
    text = normalised(encoder.embed("text", tokens), "text")
    index = torch.arange(len(image), device=image.device)
    return contrastive_losses(image[None], text[None], index, encoder.logit_scale)[0]


def accumulate_gradients(encoder: DualEncoder, pairs: Pairs, *, squared: bool, batch_size: int) -> None:
    """See :meth:`torch_pruning_mope.DualEncoder.accumulate_gradients`.

    Args:
        encoder: The dual encoder; its parameters' ``.grad`` is replaced.
        pairs: Calibration pairs.
        squared: Mean squared gradient per pair, instead of the mean gradient.
        batch_size: Pairs per loss.

    Raises:
        NonFiniteError: If the loss is NaN or infinite.
        ValueError: If ``batch_size`` is below 2.
    """
    if batch_size < 2:
        raise ValueError(f"batch_size must be at least 2, because the loss contrasts pairs; found {batch_size}.")
    parameters = list(encoder.model.parameters())
    with evaluation_mode(encoder.model), own_gradients(encoder.model), trainable(encoder.model):
        sums = [torch.zeros_like(parameter) for parameter in parameters]
        for images, tokens in pairs.batches(batch_size):
            if len(images) < 2:
                continue  # a lone last pair has nothing to contrast with
            losses = batch_losses(encoder, images, tokens)
            if not torch.isfinite(losses).all():
                raise NonFiniteError(f"the contrastive loss must be finite; found {losses.mean().item()}.")
            for loss in losses if squared else [losses.sum()]:
                gradients = torch.autograd.grad(loss, parameters, retain_graph=squared, allow_unused=True)
                for total, gradient in zip(sums, gradients, strict=True):
                    if gradient is not None:
                        total += gradient**2 if squared else gradient
    for parameter, total in zip(parameters, sums, strict=True):
        parameter.grad = total.detach() / pairs.num_images
