"""Pairs as chunks of one tower's inputs, in the same order each time, some of which are held out."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..data import Pairs, check_batch
from ..encoder import EncoderCore, TowerName
from ..towers import BlockTower

PairsLike = Pairs | Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Chunk:
    """Inputs that run at once: images, or captions of similar length; those held out are never fitted on."""

    number: int
    held_out: bool
    inputs: Tensor


class Source:
    """Inputs, as often as they are asked for."""

    def __init__(self, pairs: Any, held_out: float, memory: int, encoder: EncoderCore) -> None:
        self._period = max(2, round(1 / held_out))
        self._digests: dict[TowerName, list[str]] = {}
        self._encoder = encoder
        if not isinstance(pairs, Pairs) and iter(pairs) is pairs:
            pairs = _held(pairs, memory)
        self._pairs = pairs

    def fingerprint(self) -> str:
        """Digest that all processes must share; empty where batches are read as they are needed."""
        return self._pairs.fingerprint() if isinstance(self._pairs, Pairs) else ""

    def first(self, tower: TowerName, view: BlockTower) -> Tensor:
        """Two inputs to try things on."""
        for inputs in self.batches(tower):
            self._check(tower, inputs)
            lengths = view.lengths(inputs[:2])
            return inputs[:2] if lengths is None else inputs[:2, : int(lengths.max())]
        raise ValueError("pairs must hold images and captions; found none. Pass a few hundred.")

    def _check(self, tower: TowerName, inputs: Tensor) -> None:
        """Raises where inputs are not this model's."""
        shape = self._encoder.example_inputs["images"].shape[1:]
        if tower == "image" and inputs.shape[1:] != shape:
            raise ValueError(
                f"pairs must hold images {list(shape)}; found {list(inputs.shape[1:])}. Use the preprocessing of this model."
            )
        self._encoder.towers[tower].check_inputs(inputs)

    def batches(self, tower: TowerName) -> Iterator[Tensor]:
        """One tower's inputs as they come."""
        if isinstance(self._pairs, Pairs):
            yield self._pairs.images if tower == "image" else self._pairs.tokens
            return
        known, found = self._digests.get(tower), []
        for batch in self._pairs:
            images, tokens = check_batch(batch)
            inputs = images if tower == "image" else tokens.flatten(0, -2)
            bytes_ = inputs.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
            found.append(hashlib.sha256(bytes_).hexdigest())
            if known is not None and known[: len(found)] != found:
                break
            yield inputs
        if known is not None and known != found:
            raise ValueError(
                "pairs must yield the same batches in the same order each time they are iterated; found others. Turn shuffling "
                "and random transforms off, pass Pairs, or give more memory so that they are read once."
            )
        self._digests[tower] = found

    def chunks(self, tower: TowerName, view: BlockTower, size: int) -> Iterator[Chunk]:
        """One tower's inputs, a batch's held-out ones apart, each by length."""
        count = number = 0
        for batch in self.batches(tower):
            places = torch.arange(count, count + len(batch)) % self._period
            count += len(batch)
            self._check(tower, batch)
            for held_out in (False, True):
                mine = ((places == 1) == held_out).nonzero()[:, 0]
                if not len(mine):
                    continue
                inputs = batch[mine.to(batch.device)]
                lengths = view.lengths(inputs)
                if lengths is not None:
                    order = lengths.argsort(stable=True)
                    inputs, lengths = inputs[order.to(inputs.device)], lengths[order]
                for rows in torch.arange(len(mine)).tensor_split(max(-(-len(mine) // size), min(2, len(mine)))):
                    part = inputs[rows.to(inputs.device)]
                    yield Chunk(number, held_out, part if lengths is None else part[:, : int(lengths[rows[-1]])])
                    number += 1
        if count < 2:
            raise ValueError(f"pairs must hold at least two images and captions; found {count}. Pass a few hundred.")


def _held(pairs: Iterable[tuple[Tensor, Tensor]], memory: int) -> list[tuple[Tensor, Tensor]]:
    """An iterator's batches."""
    held, size = [], 0
    for batch in pairs:
        images, tokens = check_batch(batch)
        size += images.nbytes + tokens.nbytes
        if size > memory:
            raise ValueError(
                f"pairs must fit in memory={memory} bytes where they can be iterated once only; found more. Pass a DataLoader, "
                "Pairs or a list, or fewer pairs."
            )
        held.append((images, tokens))
    return held
