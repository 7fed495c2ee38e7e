"""Layers of the base that are left, and their heads, neurons and residual channels."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from reprlib import repr as short
from typing import Any

from ..encoder import EncoderCore, TowerName
from ..errors import ModelLoadError, WrongModelError
from ..surgery import noted_channels, record
from ..towers import Prunable

Kept = tuple[int, ...] | int
"""Numbers of units or channels in the base, or how many there are where their numbers are not known."""
_MOST = 2**20
_RANGES = re.compile(r"(\d{1,7}(-\d{1,7})?(,\d{1,7}(-\d{1,7})?)*)?")


@dataclass(frozen=True)
class LayerSpec:
    """One layer that is left, by its number in the base."""

    number: int
    heads: Kept
    neurons: Kept


@dataclass(frozen=True)
class TowerSpec:
    """One tower: the number of layers in the base, the layers that are left, and channels of the residual streams."""

    of: int
    layers: tuple[LayerSpec, ...]
    widths: tuple[Kept, ...]


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
        found[name] = TowerSpec(len(encoder.numbered[name]), tuple(layers), tuple(map(_width, tower.streams)))
    return found


def _units(units: Prunable | None, removed: int) -> Kept:
    """Units that are left, by the numbers of their channels."""
    if units is None:
        return ()
    noted = noted_channels(units.output, "in")
    if noted is None:
        return units.num_units if removed else tuple(range(units.num_units))
    size = units.unit_size
    firsts = noted[::size]
    whole = [channel for first in firsts for channel in range(first, first + size)] == noted
    known = whole and len(noted) == units.channels
    return tuple(first // size for first in firsts) if known else units.num_units


def _width(output: Any) -> Kept:
    count, noted = int(output.weight.shape[0]), noted_channels(output, "out")
    return tuple(noted) if noted is not None and len(noted) == count else count


def count(kept: Kept) -> int:
    """Number of units or channels that are left."""
    return kept if isinstance(kept, int) else len(kept)


def counts(spec: Spec) -> dict[str, Any]:
    """Returns the part of a spec that shows in shapes."""
    return {
        name: (
            tower.of,
            [count(width) for width in tower.widths],
            [(layer.number, count(layer.heads), count(layer.neurons)) for layer in tower.layers],
        )
        for name, tower in spec.items()
    }


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
                total, size = units.num_units + removed[f"{name}.{kind}"][place], units.unit_size
                if kept and kept[-1] >= total:
                    raise ModelLoadError(
                        f"towers.{name}.layers[{place}].{kind} must be of the {total} that the base has; found number "
                        f"{kept[-1]}."
                    )
                if len(kept) < total:
                    record(units.output, "in", [unit * size + channel for unit in kept for channel in range(size)])
        for width, output in zip(tower.widths, encoder.towers[name].streams, strict=True):
            if not isinstance(width, int):
                record(output, "out", width)


def compose(own: Spec, before: Spec) -> Spec:
    """Returns the spec of a model that was loaded from a checkpoint and pruned on, with layers numbered as in the base."""
    if set(own) != set(before) or any(own[name].of != len(before[name].layers) for name in own):
        raise WrongModelError(
            "base must be the checkpoint that the encoder's model was loaded from; found one with other towers or layers."
        )
    return {
        name: TowerSpec(
            before[name].of,
            tuple(replace(layer, number=before[name].layers[layer.number].number) for layer in tower.layers),
            tower.widths,
        )
        for name, tower in own.items()
    }


def spec_to_json(spec: Spec) -> dict[str, Any]:
    """Returns a spec as JSON, with units as text (``0-5,8``), or as their count if their numbers are not known."""
    return {
        name: {
            "layers_of_base": tower.of,
            "widths": [ranges(width) for width in tower.widths],
            "layers": [
                {"number": layer.number, "heads": ranges(layer.heads), "neurons": ranges(layer.neurons)}
                for layer in tower.layers
            ],
        }
        for name, tower in spec.items()
    }


def ranges(kept: Kept | Iterable[int]) -> str | int:
    """Numbers as text."""
    if isinstance(kept, int):
        return kept
    runs = (list(run) for _, run in groupby(enumerate(kept), lambda item: item[1] - item[0]))
    return ",".join(str(run[0][1]) if len(run) == 1 else f"{run[0][1]}-{run[-1][1]}" for run in runs)


def read_spec(content: Any) -> Spec:
    """Reads a spec of unknown origin."""
    names: tuple[TowerName, ...] = ("image", "text", "decoder")
    decodes = isinstance(content, dict) and "decoder" in content
    found = read_object(content, "towers", *(names if decodes else names[:2]))
    return {name: _tower(found[name], f"towers.{name}") for name in names if name in found}


def _tower(content: Any, where: str) -> TowerSpec:
    found = read_object(content, where, "layers_of_base", "layers", "widths")
    of = _number(found["layers_of_base"], f"{where}.layers_of_base")
    layers, widths = found["layers"], found["widths"]
    if not isinstance(layers, list) or not 0 < len(layers) <= of:
        raise ModelLoadError(f"{where}.layers must be a list of 1 to {of} layers; found {short(layers)}.")
    read = tuple(_layer(layer, f"{where}.layers[{place}]", of) for place, layer in enumerate(layers))
    numbers = [layer.number for layer in read]
    if numbers != sorted(numbers):
        raise ModelLoadError(f"{where}.layers must be in order; found the numbers {short(numbers)}.")
    if not isinstance(widths, list):
        raise ModelLoadError(f"{where}.widths must be a list; found {short(widths)}.")
    return TowerSpec(of, read, tuple(read_kept(width, f"{where}.widths") for width in widths))


def _layer(content: Any, where: str, of: int) -> LayerSpec:
    found = read_object(content, where, "number", "heads", "neurons")
    number = _number(found["number"], f"{where}.number")
    if number >= of:
        raise ModelLoadError(f"{where}.number must be below {of}; found {number}.")
    kept = (read_kept(found[kind], f"{where}.{kind}") for kind in ("heads", "neurons"))
    return LayerSpec(number, *kept)


def read_kept(content: Any, where: str) -> Kept:
    """Reads what :func:`ranges` wrote."""
    if type(content) is int:
        return _number(content, where)
    if not isinstance(content, str) or len(content) > _MOST or not _RANGES.fullmatch(content):
        raise ModelLoadError(f"{where} must be ranges of numbers such as '0-5,8', or a count; found {short(content)}.")
    found: list[int] = []
    for part in content.split(",") if content else ():
        first, _, last = part.partition("-")
        start, end = int(first), int(last or first)
        if end < start or end >= _MOST or (found and start <= found[-1]):
            raise ModelLoadError(
                f"{where} must be below {_MOST}, in order, each once; found {part!r} in {short(content)}."
            )
        found.extend(range(start, end + 1))
    return tuple(found)


def read_object(content: Any, where: str, *names: str) -> Mapping[str, Any]:
    """Returns an object of JSON with exactly these keys."""
    if not isinstance(content, dict) or set(content) != set(names):
        found = sorted(content) if isinstance(content, dict) else content
        raise ModelLoadError(f"{where} must be an object of {', '.join(names)}; found {short(found)}.")
    return content


def _number(value: Any, where: str) -> int:
    if type(value) is not int or not 0 <= value <= _MOST:
        raise ModelLoadError(f"{where} must be an integer of 0 to {_MOST}; found {short(value)}.")
    return value
