"""Layers of the base that are left, and their heads, neurons and residual channels."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import groupby, zip_longest
from reprlib import repr as short
from typing import Any

from ..encoder import EncoderCore, TowerName
from ..errors import ModelLoadError, WrongModelError
from ..surgery import noted_channels, record
from ..towers import Prunable

Kept = str | int
"""Numbers of units or channels in the base, as ranges (``0-5,8``), or how many there are where their numbers are not known."""
_MOST = 2**20
_RANGES = re.compile(r"(\d{1,7}(-\d{1,7})?(,\d{1,7}(-\d{1,7})?)*)?")


@dataclass(frozen=True)
class LayerSpec:
    """One layer that is left, by its number in the base."""

    number: int
    heads: Kept
    neurons: Kept


_NO_LAYER = LayerSpec(-1, "", "")


@dataclass(frozen=True)
class TowerSpec:
    """One tower: the number of layers in the base, the layers that are left, and channels of the residual streams."""

    layers_of_base: int
    widths: tuple[Kept, ...]
    layers: tuple[LayerSpec, ...]


Spec = dict[TowerName, TowerSpec]


def spec_of(encoder: EncoderCore) -> Spec:
    """Returns the spec of an encoder's model."""
    removed = encoder.removed
    found: Spec = {}
    for name, tower in encoder.towers.items():
        layers = [
            LayerSpec(
                number,
                _units(block.attention, removed[f"{name}.heads"][place]),
                _units(block.feed_forward, removed[f"{name}.neurons"][place]),
            )
            for place, (number, block) in enumerate(zip(encoder.block_numbers(name), tower.blocks, strict=True))
        ]
        found[name] = TowerSpec(len(encoder.numbered[name]), tuple(map(_width, tower.streams)), tuple(layers))
    return found


def _units(units: Prunable | None, removed: int) -> Kept:
    """Units that are left, by the numbers of their channels."""
    if units is None:
        return ""
    noted = noted_channels(units.output, "in")
    if noted is None:
        return units.num_units if removed else ranges(range(units.num_units))
    size = units.unit_size
    firsts = noted[::size]
    whole = [channel for first in firsts for channel in range(first, first + size)] == noted
    known = whole and len(noted) == units.channels
    return ranges(first // size for first in firsts) if known else units.num_units


def _width(output: Any) -> Kept:
    channels, noted = int(output.weight.shape[0]), noted_channels(output, "out")
    return ranges(noted) if noted is not None and len(noted) == channels else channels


def ranges(numbers: Iterable[int]) -> str:
    """Writes increasing numbers as text."""
    runs = (list(run) for _, run in groupby(enumerate(numbers), lambda item: item[1] - item[0]))
    return ",".join(str(run[0][1]) if len(run) == 1 else f"{run[0][1]}-{run[-1][1]}" for run in runs)


def numbers_of(text: str) -> list[int]:
    """Reads what :func:`ranges` wrote."""
    if len(text) > _MOST or not _RANGES.fullmatch(text):
        raise ModelLoadError(f"units left must be ranges of numbers such as '0-5,8', or a count; found {short(text)}.")
    found: list[int] = []
    for part in text.split(",") if text else ():
        first, _, last = part.partition("-")
        start, end = int(first), int(last or first)
        if end < start or end >= _MOST or (found and start <= found[-1]):
            raise ModelLoadError(
                f"units left must be below {_MOST}, in order, each once; found {part!r} in {short(text)}."
            )
        found.extend(range(start, end + 1))
    return found


def count(kept: Kept) -> int:
    """Number of units or channels that are left."""
    found = kept if isinstance(kept, int) else len(numbers_of(kept))
    if not 0 <= found <= _MOST:
        raise ModelLoadError(f"units left must be 0 to {_MOST}; found {short(found)}.")
    return found


def counts(spec: Spec, said: Spec | None = None) -> dict[str, Any]:
    """Returns the part of a spec that shows in shapes; units only of layers where ``said`` has some.

    Whether attention can be pruned may depend on values, which a model on ``meta`` has not.
    """
    return {
        name: (
            tower.layers_of_base,
            [count(width) for width in tower.widths],
            [
                (layer.number, count(layer.heads) if other.heads else 0, count(layer.neurons) if other.neurons else 0)
                for layer, other in zip_longest(tower.layers, (said or spec)[name].layers, fillvalue=_NO_LAYER)
            ],
        )
        for name, tower in spec.items()
    }


def check_spec(spec: Spec) -> None:
    """Checks a spec of unknown origin."""
    if spec.keys() - {"decoder"} != {"image", "text"}:
        raise ModelLoadError(f"towers must be image and text, and may be decoder; found {short(sorted(spec))}.")
    for name, tower in spec.items():
        numbers = [layer.number for layer in tower.layers]
        last = tower.layers_of_base - 1
        if (
            numbers != sorted(numbers)
            or bool(numbers) != (last >= 0)
            or not all(0 <= number <= last for number in numbers)
        ):
            raise ModelLoadError(
                f"towers.{name}.layers must be in order, of the {tower.layers_of_base} of the base; found the "
                f"numbers {short(numbers)}."
            )
    counts(spec)


def note(encoder: EncoderCore, spec: Spec) -> None:
    """Mutates a model: its layers record their channels' numbers in the base, for the next pruning."""
    removed = encoder.removed
    for name, tower in spec.items():
        for place, (layer, block) in enumerate(zip(tower.layers, encoder.towers[name].blocks, strict=True)):
            for kind, units, kept in (
                ("heads", block.attention, layer.heads),
                ("neurons", block.feed_forward, layer.neurons),
            ):
                if units is None or isinstance(kept, int):
                    continue
                total, size, numbers = (
                    units.num_units + removed[f"{name}.{kind}"][place],
                    units.unit_size,
                    numbers_of(kept),
                )
                if numbers and numbers[-1] >= total:
                    raise ModelLoadError(
                        f"towers.{name}.layers[{place}].{kind} must be of the {total} that the base has; found number "
                        f"{numbers[-1]}."
                    )
                if len(numbers) < total:
                    record(units.output, "in", [unit * size + channel for unit in numbers for channel in range(size)])
        for width, output in zip(tower.widths, encoder.towers[name].streams, strict=True):
            if not isinstance(width, int):
                record(output, "out", tuple(numbers_of(width)))


def compose(own: Spec, before: Spec) -> Spec:
    """Returns the spec of a model that was loaded from a checkpoint and pruned on, with layers numbered as in the base."""
    if set(own) != set(before) or any(own[name].layers_of_base != len(before[name].layers) for name in own):
        raise WrongModelError(
            "base must be the checkpoint that the encoder's model was loaded from; found one with other towers or layers."
        )
    return {
        name: TowerSpec(
            before[name].layers_of_base,
            tower.widths,
            tuple(replace(layer, number=before[name].layers[layer.number].number) for layer in tower.layers),
        )
        for name, tower in own.items()
    }
