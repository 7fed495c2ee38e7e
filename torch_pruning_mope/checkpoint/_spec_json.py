"""What is left of a model, as JSON; read without trust."""

from collections.abc import Mapping
from itertools import groupby
from typing import Any

from ..encoder import TowerName
from ..errors import ModelLoadError
from ._spec import Kept, LayerSpec, Spec, TowerSpec, WidthSpec

_MOST = 2**24
"""Units of a layer, channels of a width, layers of a tower."""


def to_json(spec: Spec) -> dict[str, Any]:
    """A spec as JSON; units as ranges ``[first, last]``."""
    return {
        name: {
            "layers_of_base": tower.of,
            "widths": [{"channels": width.channels, "kept": _ranges(width.kept)} for width in tower.widths],
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
    decodes = isinstance(content, dict) and "decoder" in content
    found = _object(content, "towers", *(names if decodes else names[:2]))
    return {name: _tower(found[name], f"towers.{name}") for name in names if name in found}


def _tower(content: Any, where: str) -> TowerSpec:
    found = _object(content, where, "layers_of_base", "layers", "widths")
    of = _count(found["layers_of_base"], f"{where}.layers_of_base")
    layers = found["layers"]
    if not isinstance(layers, list) or not 0 < len(layers) <= of:
        raise ModelLoadError(f"{where}.layers must be a list of 1 to {of} layers, found {_short(layers)}.")
    read = tuple(_read_layer(layer, f"{where}.layers[{place}]", of) for place, layer in enumerate(layers))
    numbers = [layer.number for layer in read]
    if numbers != sorted(numbers):
        raise ModelLoadError(f"{where}.layers must be in order, found the numbers {_short(numbers)}.")
    if not isinstance(found["widths"], list):
        raise ModelLoadError(f"{where}.widths must be a list, found {_short(found['widths'])}.")
    return TowerSpec(of, read, tuple(_read_width(width, f"{where}.widths") for width in found["widths"]))


def _read_width(content: Any, where: str) -> WidthSpec:
    found = _object(content, where, "channels", "kept")
    channels = _count(found["channels"], f"{where}.channels")
    return WidthSpec(channels, _kept(found["kept"], channels, f"{where}.kept"))


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
