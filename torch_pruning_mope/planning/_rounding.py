"""Widths that the device likes."""

from typing import Literal

from ..encoder import EncoderCore

Multiple = int | Literal["auto"]
_MULTIPLES = {"cuda": 64}
_USUAL = 16
"""Matrix products of a CPU with AVX-512 take 1.2 to 1.35 times as long per neuron where their number is no multiple of 8, and
gain nothing from more than 16. GPUs work on tiles of 64 and more in half precision (NVIDIA's guide on matrix products)."""
_STEPS = 8
"""Widths that an MLP must still have to choose from."""


def multiple_of(encoder: EncoderCore, round_to: Multiple) -> int:
    """The multiple that the neurons left in every MLP are of."""
    if isinstance(round_to, int):
        if round_to < 1:
            raise ValueError(f"round_to must be at least 1, or 'auto'; found {round_to!r}.")
        return round_to
    multiple = _MULTIPLES.get(encoder.device.type, _USUAL)
    neurons = [part.num_units for layer in encoder.layers if (part := layer.block.feed_forward) is not None]
    while multiple > 1 and multiple * _STEPS > min((count for count in neurons if count), default=0):
        multiple //= 2
    return multiple
