"""What is left of a model: which layers of the base, and which heads, neurons and residual channels of each."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..encoder import EncoderCore, TowerName
from ..errors import ModelLoadError, WrongModelError
from ..surgery import noted_channels, record
from ..towers import Prunable

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
class WidthSpec:
    """One residual width.

    Attributes:
        channels: How many are left.
        kept: Which they are in the base; None if all are, or it is not known.
    """

    channels: int
    kept: Kept


@dataclass(frozen=True)
class TowerSpec:
    """One tower.

    Attributes:
        of: How many layers it has in the base.
        layers: What is left.
        widths: Of its residual streams.
    """

    of: int
    layers: tuple[LayerSpec, ...]
    widths: tuple[WidthSpec, ...]


Spec = dict[TowerName, TowerSpec]


def spec_of(encoder: EncoderCore) -> Spec:
    """What is left of the model that an encoder wrapped.

    Args:
        encoder: The encoder.

    Returns:
        The spec.
    """
    removed = encoder.removed
    found: Spec = {}
    for name, tower in encoder.towers.items():
        layers = []
        for place, (number, block) in enumerate(zip(encoder.block_numbers(name), tower.blocks, strict=True)):
            heads, neurons = block.attention, block.feed_forward
            layers.append(
                LayerSpec(
                    number=number,
                    heads=0 if heads is None else heads.num_units,
                    head_dim=0 if heads is None else heads.unit_size,
                    kept_heads=_kept(heads, removed[f"{name}.heads"][place]),
                    neurons=0 if neurons is None else neurons.num_units,
                    kept_neurons=_kept(neurons, removed[f"{name}.neurons"][place]),
                )
            )
        found[name] = TowerSpec(len(encoder.numbered[name]), tuple(layers), tuple(map(_width, tower.streams)))
    return found


def _kept(units: Prunable | None, removed: int) -> Kept:
    """Which units are left, by their channels' numbers."""
    if units is None:
        return ()
    noted = noted_channels(units.output, "in")
    if noted is None:
        return None if removed else tuple(range(units.num_units))
    size = units.unit_size
    firsts = noted[::size]
    whole = [channel for first in firsts for channel in range(first, first + size)] == noted
    return tuple(first // size for first in firsts) if whole and len(noted) == units.channels else None


def _width(output: Any) -> WidthSpec:
    count, noted = int(output.weight.shape[0]), noted_channels(output, "out")
    return WidthSpec(count, tuple(noted) if noted is not None and len(noted) == count else None)


def note(encoder: EncoderCore, spec: Spec) -> None:
    """Mutates a model: its layers know which channels of the base they have, so that what goes next is known as well.

    Args:
        encoder: An encoder of the model, of which as much is left as the spec says.
        spec: What is left.

    Raises:
        ModelLoadError: If the spec names units that the base has not.
    """
    removed = encoder.removed
    for name, tower in spec.items():
        for place, (layer, block) in enumerate(zip(tower.layers, encoder.towers[name].blocks, strict=True)):
            for kind, units, kept in (
                ("heads", block.attention, layer.kept_heads),
                ("neurons", block.feed_forward, layer.kept_neurons),
            ):
                if units is None or kept is None:
                    continue
                total, size = units.num_units + removed[f"{name}.{kind}"][place], units.unit_size
                _check(kept, total, f"towers.{name}.layers[{place}].kept_{kind}")
                channels = [unit * size + channel for unit in kept for channel in range(size)]
                if len(kept) < total:
                    record(units.output, "in", channels)
        for width, output in zip(tower.widths, encoder.towers[name].streams, strict=True):
            if width.kept is not None:
                record(output, "out", width.kept)


def _check(kept: Sequence[int], total: int, where: str) -> None:
    if kept and kept[-1] >= total:
        raise ModelLoadError(f"{where} must be of the {total} that the base has, found number {kept[-1]}.")


def sizes(spec: Spec) -> dict[str, Any]:
    """What of a spec shows in shapes."""
    return {
        name: (
            tower.of,
            [width.channels for width in tower.widths],
            [(one.number, one.heads, one.head_dim, one.neurons) for one in tower.layers],
        )
        for name, tower in spec.items()
    }


def compose(own: Spec, before: Spec) -> Spec:
    """What is left of the base of a model that was loaded from a checkpoint and pruned on.

    Args:
        own: What is left; layers are numbered as in that model, units as in its base, which its layers know.
        before: What the checkpoint had left of the base.

    Returns:
        What is left, all numbered as in the base.

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
            tuple(replace(layer, number=before[name].layers[layer.number].number) for layer in tower.layers),
            tower.widths,
        )
        for name, tower in own.items()
    }
