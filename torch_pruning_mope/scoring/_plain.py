"""The plain loop: mask, evaluate the whole tower, unmask. Slow, and right for any model that PyTorch can run."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .._state import evaluation_mode
from ..encoder import DualEncoder, TowerName
from ._units import Ablation


@contextmanager
def masked(encoder: DualEncoder, ablation: Ablation) -> Iterator[None]:
    """The model with an ablation applied by hooks, which are gone afterwards.

    Args:
        encoder: The dual encoder.
        ablation: What contributes nothing.

    Yields:
        Nothing.
    """
    block = encoder.towers[ablation.tower].blocks[ablation.layer]
    if ablation.kind == "block":
        handle = block.module.register_forward_hook(_skip, with_kwargs=True)
    else:
        output = (block.attention if ablation.kind == "head" else block.feed_forward).output
        keep = torch.ones(output.in_features, device=output.weight.device, dtype=output.weight.dtype)
        keep[list(ablation.channels)] = 0
        handle = output.register_forward_pre_hook(lambda _, inputs: (inputs[0] * keep,))
    try:
        yield
    finally:
        handle.remove()


def _skip(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], _output: object) -> object:
    return args[0] if args else next(iter(kwargs.values()))


@torch.inference_mode()
def embeddings(
    encoder: DualEncoder, tower: TowerName, inputs: Tensor, batch_size: int, removed: Collection[Ablation] = ()
) -> Float[Tensor, "N J"]:
    """The model's own embeddings in eval mode, in batches.

    Args:
        encoder: The dual encoder; left as it is.
        tower: Which tower.
        inputs: Its inputs.
        batch_size: Sequences run at once.
        removed: Ablations of that tower that hold throughout.

    Returns:
        The embeddings, not normalised.
    """
    with evaluation_mode(encoder.model), ExitStack() as stack:
        for ablation in removed:
            stack.enter_context(masked(encoder, ablation))
        return torch.cat([encoder.embed(tower, part) for part in inputs.split(batch_size)])


def plain_ablations(
    encoder: DualEncoder,
    tower: TowerName,
    inputs: Tensor,
    ablations: Sequence[Ablation],
    batch_size: int,
    removed: Collection[Ablation] = (),
) -> Iterator[tuple[list[int], Float[Tensor, "K N J"]]]:
    """Embeddings under each ablation; arguments as in the engine's ``prefix_ablations``.

    Args:
        encoder: The dual encoder; left as it is.
        tower: Which tower.
        inputs: Its inputs.
        ablations: Ablations of that tower.
        batch_size: Sequences run at once.
        removed: Ablations of that tower that hold throughout, besides.

    Yields:
        One position in ``ablations`` at a time, and its embeddings, not normalised.
    """
    for position, ablation in enumerate(ablations):
        yield [position], embeddings(encoder, tower, inputs, batch_size, [*removed, ablation])[None]
