"""Sizes of a model without some units, measured on copies from which they were really removed."""

import copy
from collections.abc import Mapping, Sequence
from typing import Literal

from ..cost import Footprint, footprints, latencies
from ..encoder import EncoderCore, TowerName
from ..pruning import cut
from ..towers import Unit

Measure = Literal["parameters", "multiply_adds", "latency"]
Sizes = Mapping[Measure, Mapping[TowerName, int | float]]
"""Sizes of a model, by measure and tower."""


def sizes_of(found: Mapping[TowerName, Footprint], seconds: Mapping[TowerName, float]) -> Sizes:
    """Footprints by measure; with latencies, if there are any."""
    sizes: dict[Measure, Mapping[TowerName, int | float]] = {
        "parameters": {tower: footprint.parameters for tower, footprint in found.items()},
        "multiply_adds": {tower: footprint.multiply_adds for tower, footprint in found.items()},
    }
    return sizes | ({"latency": seconds} if seconds else {})


def without(encoder: EncoderCore, units: Sequence[Unit], *, checked: bool = True) -> EncoderCore:
    """A copy without some units, in which all parameters that the whole model trains ask for gradients, needed or not."""
    smaller = EncoderCore(copy.deepcopy(encoder.model))
    cut(smaller, units, checked=checked)
    return smaller


class Measured:
    """Sizes of a model without some units, measured once for each choice of units; with latencies if given a batch size."""

    def __init__(self, encoder: EncoderCore, batch_size: int | None) -> None:
        self._encoder, self._batch_size = encoder, batch_size
        self._found: dict[tuple[Unit, ...], tuple[Mapping[TowerName, Footprint], Sizes]] = {}

    def __call__(self, units: Sequence[Unit]) -> Sizes:
        return self._measured(tuple(units))[1]

    def footprints(self, units: Sequence[Unit]) -> Mapping[TowerName, Footprint]:
        """Footprint of each tower."""
        return self._measured(tuple(units))[0]

    def _measured(self, units: tuple[Unit, ...]) -> tuple[Mapping[TowerName, Footprint], Sizes]:
        if units not in self._found:
            # The graph of one copy is checked for all.
            smaller = without(self._encoder, units, checked=not any(self._found)) if units else self._encoder
            seconds = {} if self._batch_size is None else latencies(smaller, batch_size=self._batch_size)
            found = footprints(smaller)
            self._found[units] = found, sizes_of(found, seconds)
        return self._found[units]
