"""Measuring what a metric loses under an ablation, on top of ablations that hold already."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..data import Pairs
from ..encoder import DualEncoder, TowerName
from ..metrics import Metric, normalised
from ._engine import dense_embeddings, prefix_ablations
from ._plain import embeddings, plain_ablations
from ._units import Ablation

PairsLike = Pairs | Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Loss:
    """What a metric loses against the whole model.

    Attributes:
        value: The loss, in the metric's units.
        shares: Each calibration image's part of it, ``[I]``; their mean is ``value``. None if the metric has none.
    """

    value: float
    shares: Float[Tensor, "I"] | None


class Meter:
    """Evaluates ablations of one model on one calibration set.

    While units of one tower are removed, the other tower's embeddings stay as they are.

    Args:
        encoder: The dual encoder; left as it is.
        pairs: Calibration pairs.
        metric: Z.
        engine: ``prefix`` or ``plain``.
        batch_size: Sequences run at once.
    """

    def __init__(self, encoder: DualEncoder, pairs: Pairs, metric: Metric, engine: str, batch_size: int) -> None:
        self._encoder = encoder
        self._metric = metric
        self._batch_size = batch_size
        self._embed, self._ablations = (
            (dense_embeddings, prefix_ablations) if engine == "prefix" else (embeddings, plain_ablations)
        )
        self._inputs: dict[TowerName, Tensor] = {"image": pairs.images, "text": pairs.tokens}
        self._index = pairs.image_index.to(encoder.device)
        self._removed: list[Ablation] = []
        self.evaluations = 0
        self._dense = {name: self._embeddings(name)[None] for name in self._inputs}
        self._baseline = self._gains(self._dense["image"], self._dense["text"])[0]
        self._current = dict(self._dense)

    @property
    def dense(self) -> float:
        """The metric of the whole model."""
        return self._baseline.value

    def losses(self, ablations: Sequence[Ablation]) -> Iterator[tuple[Ablation, Loss]]:
        """What the metric loses under each ablation and those that hold already.

        Args:
            ablations: Ablations to try, one at a time.

        Yields:
            Each ablation once, in an order of the engine's choice, with its loss.
        """
        for tower, inputs in self._inputs.items():
            mine = [ablation for ablation in ablations if ablation.tower == tower]
            if not mine:
                continue
            held = [ablation for ablation in self._removed if ablation.tower == tower]
            for positions, found in self._ablations(self._encoder, tower, inputs, mine, self._batch_size, held):
                both = self._current | {tower: normalised(found, tower)}
                self.evaluations += len(positions)
                for position, gain in zip(positions, self._gains(both["image"], both["text"]), strict=True):
                    yield mine[position], self._loss(gain)

    def remove(self, ablation: Ablation) -> None:
        """Makes an ablation hold from now on.

        Args:
            ablation: The ablation.
        """
        self._removed.append(ablation)
        self._current[ablation.tower] = self._embeddings(ablation.tower)[None]

    def reset(self) -> None:
        """Makes the model whole again."""
        self._removed.clear()
        self._current = dict(self._dense)

    def _embeddings(self, tower: TowerName) -> Tensor:
        held = [ablation for ablation in self._removed if ablation.tower == tower]
        return normalised(self._embed(self._encoder, tower, self._inputs[tower], self._batch_size, held), tower)

    def _gains(self, images: Tensor, texts: Tensor) -> list[Loss]:
        """The metric itself, under each of some ablations."""
        shares = self._metric.per_image(images, texts, self._index)
        if shares is None:
            return [Loss(value, None) for value in self._metric.values(images, texts, self._index)]
        shares = shares.cpu().double()
        return [Loss(float(row.mean()), row) for row in shares]

    def _loss(self, gain: Loss) -> Loss:
        base = self._baseline
        shares = None if gain.shares is None or base.shares is None else base.shares - gain.shares
        return Loss(base.value - gain.value, shares)


def stacked_shares(losses: Sequence[Loss]) -> Float[Tensor, "K I"] | None:
    """The shares of several losses, or None if one has none."""
    found = [loss.shares for loss in losses if loss.shares is not None]
    return torch.stack(found) if len(found) == len(losses) else None
