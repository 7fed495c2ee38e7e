"""Gradients of the contrastive loss, for the criteria that need them."""

from collections.abc import Iterator, Sequence
from itertools import islice

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm import tqdm

from .._state import evaluation_mode, own_gradients, trainable
from ..data import Pairs
from ..encoder import EncoderCore
from ..errors import NonFiniteError
from ..metrics import contrastive_losses, normalised
from ._meter import PairsLike
from ._ranks import Ranks

_PARTS = 8
"""Batches are summed in so many parts, whoever computes them: the same order of summation, so the same bits."""


def batch_losses(encoder: EncoderCore, images: Tensor, tokens: Tensor) -> Float[Tensor, "N"]:
    """Contrastive loss of each pair of a batch, one caption each, differentiable, at the model's own temperature."""
    return _losses(encoder, encoder.embed("image", images), encoder.embed("text", tokens))


def _losses(encoder: EncoderCore, images: Float[Tensor, "N J"], texts: Float[Tensor, "N J"]) -> Float[Tensor, "N"]:
    index = torch.arange(len(images), device=images.device)
    image, text = normalised(images, "image")[None], normalised(texts, "text")[None]
    return contrastive_losses(image, text, index, encoder.logit_scale)[0]


class GradientsMixin(EncoderCore):
    """Adds :meth:`accumulate_gradients` to a dual encoder."""

    def accumulate_gradients(
        self, pairs: PairsLike, *, squared: bool = False, batch_size: int = 64, progress: bool = False
    ) -> None:
        """Mutates the model's ``.grad``: gradients of the contrastive loss over ``pairs``, for criteria that read them.

        Args:
            pairs: Calibration pairs, or any iterable of ``(images, tokens)`` batches.
            squared: The mean square of each pair's part of the gradient (what reaches a weight through the pair's own
                image and caption), instead of the mean gradient, as Torch-Pruning's Hessian importance reads it from
                ``.grad``. Its own ``accumulate_grad`` (1.6.1) keeps only the last sample.
            batch_size: Pairs that contrast with each other in one loss.
            progress: Show a progress bar.

        Raises:
            NonFiniteError: If an embedding or gradient is NaN or infinite; ``.grad`` is then what it was.
            ValueError: If the weights are on the ``meta`` device, or ``batch_size`` is below 2.
        """
        self.check_has_weights()
        accumulate_gradients(self, Pairs.coerce(pairs), squared=squared, batch_size=batch_size, progress=progress)


def accumulate_gradients(
    encoder: EncoderCore,
    pairs: Pairs,
    *,
    squared: bool,
    batch_size: int,
    progress: bool = False,
    ranks: Ranks | None = None,
) -> None:
    """Mutates ``.grad``; see :meth:`GradientsMixin.accumulate_gradients`. ``ranks`` share the batches, with equal results."""
    if batch_size < 2:
        raise ValueError(f"batch_size must be at least 2, because the loss contrasts pairs; found {batch_size}.")
    parameters = list(encoder.model.parameters())
    with evaluation_mode(encoder.model), own_gradients(encoder.model), trainable(encoder.model):
        totals = [torch.zeros_like(parameter) for parameter in parameters]  # in here, so never inference tensors
        rank, world = (0, 1) if ranks is None else (ranks.rank, ranks.world)
        batches = -(-pairs.num_images // batch_size)
        with tqdm(total=batches, desc="gradients", unit="batch", disable=not progress, delay=2, leave=False) as bar:
            for part in range(min(_PARTS, batches)):
                sums = [torch.zeros_like(parameter) for parameter in parameters]
                for images, tokens in (
                    islice(pairs.batches(batch_size), part, None, _PARTS) if part % world == rank else ()
                ):
                    _add(sums, encoder, parameters, images, tokens, squared=squared)
                    bar.update()
                if ranks is not None and world > 1:
                    ranks.spread(sums, part % world)
                for total, own in zip(totals, sums, strict=True):
                    total += own
        means = [total.detach() / pairs.num_images for total in totals]
    bad = sum(not bool(torch.isfinite(mean).all()) for mean in means)
    if bad:
        raise NonFiniteError(f"gradients must be finite; found NaN or infinity in {bad} of {len(means)} parameters.")
    for parameter, mean in zip(parameters, means, strict=True):
        parameter.grad = mean


def _add(
    sums: Sequence[Tensor],
    encoder: EncoderCore,
    parameters: Sequence[nn.Parameter],
    images: Tensor,
    tokens: Tensor,
    *,
    squared: bool,
) -> None:
    """Adds a batch's gradients, or its pairs' squared ones, to the sums."""
    if len(images) < 2:
        return  # a lone last pair has nothing to contrast with
    for gradients in (_pair_gradients if squared else _batch_gradients)(encoder, parameters, images, tokens):
        for total, gradient in zip(sums, gradients, strict=True):
            if gradient is not None:
                total += gradient**2 if squared else gradient


def _batch_gradients(
    encoder: EncoderCore, parameters: Sequence[nn.Parameter], images: Tensor, tokens: Tensor
) -> Iterator[Sequence[Tensor | None]]:
    """The gradient of the batch's summed loss."""
    yield torch.autograd.grad(batch_losses(encoder, images, tokens).sum(), parameters, allow_unused=True)


def _pair_gradients(
    encoder: EncoderCore, parameters: Sequence[nn.Parameter], images: Tensor, tokens: Tensor
) -> Iterator[Sequence[Tensor | None]]:
    """Each pair's part of that gradient: what reaches the weights through its own image and its own caption."""
    # The parts sum to the gradient (but for the temperature, which no embedding depends on), at the price of one
    # forward and backward of single pairs, where a backward per pair's loss would go through the whole batch each time.
    with torch.no_grad():
        embeddings = [encoder.embed("image", images), encoder.embed("text", tokens)]
    leaves = [embedding.requires_grad_() for embedding in embeddings]
    wanted = torch.autograd.grad(_losses(encoder, *leaves).sum(), leaves)
    for n in range(len(images)):
        own = [encoder.embed("image", images[n : n + 1]), encoder.embed("text", tokens[n : n + 1])]
        yield torch.autograd.grad(own, parameters, [part[n : n + 1] for part in wanted], allow_unused=True)
