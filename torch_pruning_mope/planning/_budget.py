"""Sizes of a model, and budgets: how much may be left of it, as people write it and as numbers."""

import copy
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ..cost import TOWERS, Footprint, footprints
from ..encoder import EncoderCore, TowerName
from ..pruning import cut
from ..towers import Unit

Measure = Literal["parameters", "multiply_adds", "latency"]
Sizes = Mapping[Measure, Mapping[TowerName, int | float]]
"""Sizes of a model, by measure and tower."""
Timer = Callable[..., Mapping[TowerName, float]]
"""Seconds of each tower of an encoder, which is left as it is, for ``batch_size`` inputs."""


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
    """Sizes of a model without some units, measured once for each choice of units; with latencies if given a timer."""

    def __init__(
        self, encoder: EncoderCore, seconds: Callable[[EncoderCore], Mapping[TowerName, float]] | None
    ) -> None:
        self._encoder, self._seconds = encoder, seconds
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
            seconds = {} if self._seconds is None else self._seconds(smaller)
            found = footprints(smaller)
            self._found[units] = found, sizes_of(found, seconds)
        return self._found[units]


Amount = str | float | int
"""``"50%"``, a share below 1, or an absolute number, as ``8e9`` or ``"8G"``."""
Budget = Amount | Mapping[str, Amount]
"""For both towers together, or for each."""


@dataclass(frozen=True)
class Limit:
    """The most that may be left of one measure in some towers together, as asked and as a number."""

    measure: Measure
    towers: tuple[TowerName, ...]
    most: int | float
    asked: Amount
    total: int | float

    def of(self, sizes: Sizes) -> int | float:
        """The measure's sum over the towers."""
        return sum(sizes[self.measure][tower] for tower in self.towers)

    def __str__(self) -> str:
        return self.measure if self.towers == TOWERS else f"{self.measure} of the {self.towers[0]} tower"


def limits_of(budgets: Mapping[Measure, Budget | None], whole: Sizes) -> list[Limit]:
    """Budgets as limits, one for each number; ``whole`` is the size of the whole model."""
    given = {measure: budget for measure, budget in budgets.items() if budget is not None}
    if not given:
        raise ValueError("one of parameters, multiply_adds and latency must be given; found none.")
    limits = []
    for measure, budget in given.items():
        for towers, amount in parts_of(measure, budget):
            total = sum(whole[measure][tower] for tower in towers)
            most = parse_amount(measure, amount, total)
            if not 0 < most < total:
                raise ValueError(
                    f"{measure} must be less than the {in_unit_of(amount, total, total)} that there are; found {amount!r}."
                )
            limits.append(Limit(measure, towers, most, amount, total))
    return limits


def parts_of(measure: str, budget: Budget) -> list[tuple[tuple[TowerName, ...], Amount]]:
    """The towers that a budget is for, together or each, with the amount."""
    if not isinstance(budget, Mapping):
        return [(TOWERS, budget)]
    if not budget or set(budget) - set(TOWERS):
        raise ValueError(f"{measure} must be for image, text or both; found {dict(budget)!r}.")
    return [((tower,), budget[tower]) for tower in TOWERS if tower in budget]


def unreachable(failing: Mapping[Limit, int | float], where: str) -> str:
    """The message for limits that cannot be met, given the least that can be left; in the units that were asked for."""
    least = ", ".join(
        f"{limit} of at least {in_unit_of(limit.asked, low, limit.total)}" for limit, low in failing.items()
    )
    asked = ", ".join(f"{limit.asked!r} for {limit}" for limit in failing)
    return (
        f"budgets must leave {least}, the least that can be reached {where}; found {asked}. Allow more, or let more kinds of "
        "units go."
    )


_SUFFIXES = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "ms": 1e-3, "s": 1.0}
_AMOUNT = re.compile(r"\s*(\d+(?:\.\d+)?(?:e\d+)?)\s*(%|ms|s|[KMGT])?(?:FLOPs|MACs|B)?\s*", re.IGNORECASE)


def parse_amount(name: str, amount: Amount, total: int | float) -> int | float:
    """An amount as a number."""
    if isinstance(amount, str):
        found = _AMOUNT.fullmatch(amount)
        if found is None:
            raise ValueError(f"{name} must be an amount such as '50%', 0.5, 86e6 or '86M'; found {amount!r}.")
        suffix = _suffix(found)
        return float(found[1]) / 100 * total if suffix == "%" else float(found[1]) * _SUFFIXES[suffix]
    if isinstance(amount, bool) or amount <= 0:
        raise ValueError(f"{name} must be an amount such as '50%', 0.5, 86e6 or '86M'; found {amount!r}.")
    return amount * total if amount < 1 and name != "latency" else float(amount)


def in_unit_of(asked: Amount, number: int | float, total: int | float) -> str:
    """A number in the unit of an amount, rounded up, so that it serves as a budget."""
    found = _AMOUNT.fullmatch(asked) if isinstance(asked, str) else None
    if found is not None and (suffix := _suffix(found)):
        share = suffix == "%"
        return f"{_up(100 * number / total if share else number / _SUFFIXES[suffix], 1 if share else 3)}{suffix}"
    if isinstance(asked, float) and asked < 1 and number > 1:
        return _up(number / total, 3)
    return _up(number, 0 if number >= 1000 else 6)


def _suffix(found: re.Match[str]) -> str:
    suffix = found[2] or ""
    return suffix.lower() if suffix.lower() in {"ms", "s"} else suffix.upper()


def _up(number: int | float, digits: int) -> str:
    """Rounded up to so many digits after the point."""
    scale = 10**digits
    text = f"{math.ceil(number * scale * (1 - 1e-12)) / scale:.{digits}f}"
    return text.rstrip("0").rstrip(".") if digits else text


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
