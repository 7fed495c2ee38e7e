"""What is left of a model: which layers of the base, and which heads and neurons of each."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from ..encoder import DualEncoder, TowerName
from ..errors import ModelLoadError, WrongModelError

_MOST = 2**24
"""Units of a layer, channels of a width, layers of a tower."""
Kept = tuple[int, ...] | None
"""Numbers of units in the base, or None where it is not known which they are."""


@dataclass(frozen=True)
class LayerSpec:
    """One layer that is left.

    Attributes:
        number: Which layer of the base it is.
        heads: How many heads it has.
        head_dim: Channels of each.
        kept_heads: Which they are in the base.
        neurons: How many neurons it has.
        kept_neurons: Which they are in the base.
    """

    number: int
    heads: int
    head_dim: int
    kept_heads: Kept
    neurons: int
    kept_neurons: Kept


@dataclass(frozen=True)
class TowerSpec:
    """One tower.

    Attributes:
        of: How many layers it has in the base.
        layers: What is left.
        width: Residual channels that are left, summed over the streams.
    """

    of: int
    layers: tuple[LayerSpec, ...]
    width: int


Spec = dict[TowerName, TowerSpec]


def spec_of(encoder: DualEncoder) -> Spec:
    """What is left of the model that an encoder wrapped.

    Args:
        encoder: The encoder.

    Returns:
        The spec.
    """
    widths = encoder.widths
    return {
        name: TowerSpec(
            len(encoder.numbered[name]),
            tuple(_layer(encoder, name, place, number) for place, number in enumerate(encoder.block_numbers(name))),
            widths.get(name, 0),
        )
        for name in encoder.towers
    }


def _layer(encoder: DualEncoder, tower: TowerName, place: int, number: int) -> LayerSpec:
    block = encoder.towers[tower].blocks[place]
    heads, neurons = block.attention, block.feed_forward
    return LayerSpec(
        number=number,
        heads=0 if heads is None else heads.num_units,
        head_dim=0 if heads is None else heads.unit_size,
        kept_heads=None,
        neurons=0 if neurons is None else neurons.num_units,
        kept_neurons=None,
    )


def sizes(spec: Spec) -> dict[str, Any]:
    """What of a spec shows in shapes."""
    return {
        name: (tower.of, tower.width, [(one.number, one.heads, one.head_dim, one.neurons) for one in tower.layers])
        for name, tower in spec.items()
    }


def to_json(spec: Spec) -> dict[str, Any]:
    """A spec as JSON; units as ranges ``[first, last]``."""
    return {
        name: {
            "layers_of_base": tower.of,
            "width": tower.width,
            "layers": [
                {
                    "number": layer.number,
                    "heads": layer.heads,
                    "head_dim": layer.head_dim,
                    "kept_heads": _ranges(layer.kept_heads),
                    "neurons": layer.neurons,
                    "kept_neurons": _ranges(layer.kept_neurons),
                }
                for layer in tower.layers
            ],
        }
        for name, tower in spec.items()
    }


def _ranges(kept: Kept) -> list[list[int]] | None:
    if kept is None:
        return None
    runs = (list(run) for _, run in groupby(enumerate(kept), lambda item: item[1] - item[0]))
    return [[run[0][1], run[-1][1]] for run in runs]


def from_json(content: Any) -> Spec:
    """Reads a spec without trust.

    Args:
        content: Parsed JSON.

    Returns:
        The spec.

    Raises:
        ModelLoadError: If it is none.
    """
    names: tuple[TowerName, ...] = ("image", "text", "decoder")
    found = _object(content, "towers", *[name for name in names if name != "decoder" or "decoder" in content])
    return {name: _tower(found[name], f"towers.{name}") for name in names if name in found}


def _tower(content: Any, where: str) -> TowerSpec:
    found = _object(content, where, "layers_of_base", "layers", "width")
    of = _count(found["layers_of_base"], f"{where}.layers_of_base")
    layers = found["layers"]
    if not isinstance(layers, list) or not 0 < len(layers) <= of:
        raise ModelLoadError(f"{where}.layers must be a list of 1 to {of} layers, found {_short(layers)}.")
    read = tuple(_read_layer(layer, f"{where}.layers[{place}]", of) for place, layer in enumerate(layers))
    numbers = [layer.number for layer in read]
    if numbers != sorted(numbers):
        raise ModelLoadError(f"{where}.layers must be in order, found the numbers {_short(numbers)}.")
    return TowerSpec(of, read, _count(found["width"], f"{where}.width"))


def _read_layer(content: Any, where: str, of: int) -> LayerSpec:
    fields = ("number", "heads", "head_dim", "kept_heads", "neurons", "kept_neurons")
    found = _object(content, where, *fields)
    counts = {name: _count(found[name], f"{where}.{name}") for name in ("number", "heads", "head_dim", "neurons")}
    if counts["number"] >= of:
        raise ModelLoadError(f"{where}.number must be below {of}, found {counts['number']}.")
    kept = {
        f"kept_{kind}": _kept(found[f"kept_{kind}"], counts[kind], f"{where}.kept_{kind}")
        for kind in ("heads", "neurons")
    }
    return LayerSpec(**counts, **kept)  # type: ignore[arg-type]


def _kept(content: Any, count: int, where: str) -> Kept:
    if content is None:
        return None
    if not isinstance(content, list):
        raise ModelLoadError(f"{where} must be a list of ranges or null, found {_short(content)}.")
    kept: list[int] = []
    for pair in content:
        if not isinstance(pair, list) or len(pair) != 2:
            raise ModelLoadError(f"{where} must be ranges [first, last], found {_short(pair)}.")
        first, last = (_count(number, where) for number in pair)
        if last < first or (kept and first <= kept[-1]) or len(kept) + last - first >= count:
            raise ModelLoadError(f"{where} must be {count} units in order, each once; found {_short(content)}.")
        kept.extend(range(first, last + 1))
    if len(kept) != count:
        raise ModelLoadError(f"{where} must be {count} units, found {len(kept)}.")
    return tuple(kept)


def _object(content: Any, where: str, *names: str) -> Mapping[str, Any]:
    if not isinstance(content, dict) or set(content) != set(names):
        found = sorted(map(str, content)) if isinstance(content, dict) else _short(content)
        raise ModelLoadError(f"{where} must be an object of {', '.join(names)}; found {found}.")
    return content


def _count(value: Any, where: str) -> int:
    if type(value) is not int or not 0 <= value <= _MOST:
        raise ModelLoadError(f"{where} must be an integer of 0 to {_MOST}, found {_short(value)}.")
    return value


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]} …"


def compose(own: Spec, before: Spec) -> Spec:
    """What is left of the base of a model that was pruned before.

    Args:
        own: What is left, numbered as in that model.
        before: What was left of its base.

    Returns:
        What is left, numbered as in the base.

    Raises:
        WrongModelError: If ``own`` is of another model.
    """
    if set(own) != set(before) or any(own[name].of != len(before[name].layers) for name in own):
        raise WrongModelError(
            "base must be the checkpoint that the encoder's model was loaded from; found one with other towers or layers."
        )
    return {
        name: TowerSpec(
            before[name].of,
            tuple(_composed(layer, before[name].layers[layer.number]) for layer in tower.layers),
            tower.width,
        )
        for name, tower in own.items()
    }


def _composed(own: LayerSpec, before: LayerSpec) -> LayerSpec:
    def numbers(kept: Kept, earlier: Kept) -> Kept:
        if kept is None or earlier is None:
            return None
        if kept and kept[-1] >= len(earlier):
            raise WrongModelError(
                "base must be the checkpoint that the encoder's model was loaded from; found one with fewer units."
            )
        return tuple(earlier[unit] for unit in kept)

    return LayerSpec(
        before.number,
        own.heads,
        own.head_dim,
        numbers(own.kept_heads, before.kept_heads),
        own.neurons,
        numbers(own.kept_neurons, before.kept_neurons),
    )
