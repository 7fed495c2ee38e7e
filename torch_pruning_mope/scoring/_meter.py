"""Measuring a metric's loss under an ablation, on top of ablations that hold already."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property

import torch
from torch import Tensor

from ..data import Pairs
from ..encoder import TowerName
from ..metrics import Metric, normalised
from ._engine import PlainEngine, PrefixEngine
from ._journal import Journal, Loss, measurement_keys
from ._memory import nbytes, peak_bytes
from ._ranks import Ranks
from ._units import Ablation

PairsLike = Pairs | Iterable[tuple[Tensor, Tensor]]
Engine = PrefixEngine | PlainEngine

_DENSE = "dense"


class Meter:
    """Evaluates ablations of one model on one calibration set.

    While units of one tower are removed, the other tower's embeddings stay as they are.
    """

    def __init__(
        self,
        engine: Engine,
        pairs: Pairs,
        metric: Metric,
        device: torch.device | str = "cpu",
        *,
        journal: Journal | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self._engine = engine
        self._metric = metric
        self._ranks = ranks or Ranks()
        self._journal = journal or Journal(None, {}, self._ranks)
        self._inputs: dict[TowerName, Tensor] = {"image": pairs.images, "text": pairs.tokens}
        self._index = pairs.image_index.to(device)
        self._removed: list[Ablation] = []
        self._current: dict[TowerName, Tensor] = {}
        self.evaluations = 0
        """Ablations whose loss was asked for."""
        self.computed = 0
        """Ablations that this process has evaluated."""

    @property
    def dense(self) -> float:
        """The metric of the whole model."""
        return self._baseline.value

    def losses(self, ablations: Sequence[Ablation]) -> Iterator[tuple[Ablation, Loss]]:
        """The metric's loss under each ablation and those that hold already."""
        self.evaluations += len(ablations)
        for tower in self._inputs:
            mine = [ablation for ablation in ablations if ablation.tower == tower]
            held = self._held(tower)
            keys = measurement_keys(self._removed, mine)
            new = {position for position, key in enumerate(keys) if key not in self._journal}
            for position, key in enumerate(keys):
                if position not in new:
                    yield mine[position], self._journal[key]
            if not new:
                continue
            for position in self._measure(tower, mine, keys, held, new):
                yield mine[position], self._journal[keys[position]]

    def _share_of(self, new: set[int]) -> Callable[[Sequence[int]], bool]:
        """Tells of a batch whether this rank runs it: batches that hold something new are dealt out in turn."""
        batches = 0

        def mine(batch: Sequence[int]) -> bool:
            nonlocal batches
            if new.isdisjoint(batch):
                return False
            batches += 1
            return batches % self._ranks.world == self._ranks.rank

        return mine

    def _measure(
        self, tower: TowerName, ablations: Sequence[Ablation], keys: Sequence[str], held: list[Ablation], new: set[int]
    ) -> Iterator[int]:
        """Positions whose loss has come into the journal: this rank's share, then the others'."""
        baseline, current = self._baseline, self._embeddings
        other: TowerName = "text" if tower == "image" else "image"
        done = []
        for positions, found in self._engine.ablations(
            tower, self._inputs[tower], ablations, held, self._share_of(new)
        ):
            both = {tower: normalised(found, tower), other: current(other)}
            gains = self._gains(both["image"], both["text"])
            for position, gain in zip(positions, gains, strict=True):
                if position in new:
                    self._journal.add(keys[position], _difference(baseline, gain), ablations[position])
                    self.computed += 1
                    done.append(position)
                    yield position
        if self._ranks.world > 1:
            shares = self._ranks.gather([(position, self._journal[keys[position]]) for position in done])
            for position, loss in (entry for share in shares for entry in share):
                if position not in done:
                    self._journal.share(keys[position], loss)
                    yield position

    def remove(self, ablation: Ablation) -> None:
        """Makes an ablation hold from now on."""
        self._removed.append(ablation)
        self._current.pop(ablation.tower, None)

    def reset(self) -> None:
        """Makes the model whole again."""
        if self._removed:
            self._removed.clear()
            self._current.clear()

    def _held(self, tower: TowerName) -> list[Ablation]:
        return [ablation for ablation in self._removed if ablation.tower == tower]

    def _embeddings(self, tower: TowerName) -> Tensor:
        """The tower's embeddings as things stand, ``[1, N, J]``."""
        held = self._held(tower)
        if not held:
            return self._whole[tower]
        if tower not in self._current:
            self._current[tower] = normalised(self._engine.embeddings(tower, self._inputs[tower], held), tower)[None]
        return self._current[tower]

    @cached_property
    def _whole(self) -> dict[TowerName, Tensor]:
        """The embeddings of the whole model, ``[1, N, J]``; leaves room for what the metric needs."""
        whole = {tower: normalised(self._engine.embeddings(tower, x), tower)[None] for tower, x in self._inputs.items()}
        if isinstance(self._engine, PlainEngine):
            return whole
        self._engine.agree(self._ranks)
        largest = max(nbytes(tensor) for tensor in whole.values())
        needed = peak_bytes(lambda: self._gains(whole["image"], whole["text"]), self._index.device)
        # Twice: as they are, and as they are while others are removed. Ablated embeddings come in parts, whole, normalised.
        self._engine.reserve(2 * nbytes(*whole.values()), needed + 3 * largest)
        return whole

    @cached_property
    def _baseline(self) -> Loss:
        if _DENSE not in self._journal:
            [gain] = self._gains(self._whole["image"], self._whole["text"])
            self._journal.add(_DENSE, self._ranks.first(gain), None)
        return self._journal[_DENSE]

    def _gains(self, images: Tensor, texts: Tensor) -> list[Loss]:
        """The metric itself, under each of some ablations."""
        with torch.inference_mode():
            shares = self._metric.per_image(images, texts, self._index)
            if shares is None:
                return [Loss(value, None) for value in self._metric.values(images, texts, self._index)]
            shares = shares.cpu().double()
            return [Loss(float(row.mean()), row) for row in shares]


def _difference(baseline: Loss, gain: Loss) -> Loss:
    shares = None if gain.shares is None or baseline.shares is None else baseline.shares - gain.shares
    return Loss(baseline.value - gain.value, shares)
