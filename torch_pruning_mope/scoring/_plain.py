"""The plain loop: ablate, evaluate the whole tower, restore. Slow, and right for any model that PyTorch can run."""

from collections.abc import Callable, Collection, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from .._state import evaluation_mode
from ..encoder import EncoderCore, TowerName
from ._ablate import Ablator
from ._units import Ablation


class PlainEngine:
    """Evaluates ablations of a dual encoder one after another, each on the whole tower, with the model's own code."""

    def __init__(
        self,
        encoder: EncoderCore,
        *,
        batch_size: int | None = None,
        dtype: torch.dtype | None = None,
        ablator: Ablator | None = None,
    ) -> None:
        self._ablator = ablator or Ablator(encoder)
        self._batch_size = batch_size or (32 if encoder.device.type == "cpu" else 512)
        self._autocast = torch.autocast(encoder.device.type, dtype, enabled=dtype is not None)

    def embeddings(self, tower: TowerName, inputs: Tensor, removed: Collection[Ablation] = ()) -> Float[Tensor, "N J"]:
        """As in :class:`PrefixEngine`."""
        with (
            self._ablator.without(tower, removed) as encoder,
            torch.inference_mode(),
            evaluation_mode(encoder.model),
            self._autocast,
        ):
            return torch.cat([encoder.embed(tower, part) for part in inputs.split(self._batch_size)])

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
