"""The plain loop: mask, evaluate the whole tower, unmask. Slow, and right for any model that PyTorch can run."""

from collections.abc import Callable, Collection, Iterator, Sequence
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


class PlainEngine:
    """Evaluates ablations of a dual encoder one after another, each on the whole tower, with the model's own code.

    Args:
        encoder: The dual encoder; left as it is.
        batch_size: Sequences run at once; None for 32 on a CPU and 512 elsewhere.
        dtype: Compute under autocast in this type, or None.
    """

    def __init__(
        self, encoder: DualEncoder, *, batch_size: int | None = None, dtype: torch.dtype | None = None
    ) -> None:
        self._encoder = encoder
        self._batch_size = batch_size or (32 if encoder.device.type == "cpu" else 512)
        self._autocast = torch.autocast(encoder.device.type, dtype, enabled=dtype is not None)

    def reserve(self, held: int, needed: int) -> None:
        """Nothing is recorded here, so nothing need be left free."""

    @torch.inference_mode()
    def embeddings(self, tower: TowerName, inputs: Tensor, removed: Collection[Ablation] = ()) -> Float[Tensor, "N J"]:
        """As in :class:`PrefixEngine`."""
        with evaluation_mode(self._encoder.model), self._autocast, ExitStack() as stack:
            for ablation in removed:
                stack.enter_context(masked(self._encoder, ablation))
            return torch.cat([self._encoder.embed(tower, part) for part in inputs.split(self._batch_size)])

    def ablations(
        self,
        tower: TowerName,
        inputs: Tensor,
        ablations: Sequence[Ablation],
        removed: Collection[Ablation] = (),
        only: Callable[[Sequence[int]], bool] = lambda _: True,
    ) -> Iterator[tuple[Sequence[int], Float[Tensor, "K N J"]]]:
        """As in :class:`PrefixEngine`, one at a time in the given order."""
        for position, ablation in enumerate(ablations):
            if only([position]):
                yield [position], self.embeddings(tower, inputs, [*removed, ablation])[None]
