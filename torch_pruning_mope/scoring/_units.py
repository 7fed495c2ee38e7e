"""Units of MoPE: heads, groups of FFN neurons, and blocks.

Channels are input channels of a sub-layer's output layer, as the model is now.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ..encoder import EncoderCore, TowerName
from ..towers import Part, Unit, UnitKind

Orders = Mapping[tuple[str, int], Sequence[int]]
"""Neurons of each (tower, layer), least important first."""


@dataclass(frozen=True)
class Ablation:
    """Input channels of one sub-layer's output layer, or a whole block, set to contribute nothing."""

    tower: TowerName
    layer: int
    part: Part
    channels: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{self.tower} layer {self.layer} {self.part} ({len(self.channels)} channels)"


def enumerate_units(
    encoder: EncoderCore, kinds: Collection[str], orders: Orders, groups: int, towers: Collection[str]
) -> list[Unit]:
    """All units of a model, in the order of towers, layers, kinds and indices."""
    # ``orders`` has the neurons of each MLP, least important first; those that it lacks keep their own order. An MLP
    # has no more groups than neurons, of sizes that differ by one at most.
    units: list[Unit] = []
    for layer in encoder.layers:
        tower, block = layer.tower, layer.block
        if tower not in towers:
            continue
        if "head" in kinds and block.attention is not None:
            size = block.attention.unit_size
            units += [
                Unit("head", tower, layer.index, head, tuple(range(head * size, (head + 1) * size)))
                for head in range(block.attention.num_units)
            ]
        if "neurons" in kinds and block.feed_forward is not None and block.feed_forward.channels:
            count = block.feed_forward.num_units
            order = orders.get((tower, layer.index), range(count))
            units += [
                Unit("neurons", tower, layer.index, rank, tuple(order[start:stop]))
                for rank, (start, stop) in enumerate(_cuts(count, min(groups, count)))
            ]
        for kind, whole in (("attention", block.attention), ("mlp", block.feed_forward)):
            if kind in kinds and whole is not None and whole.channels:
                name: UnitKind = "attention" if kind == "attention" else "mlp"
                units.append(Unit(name, tower, layer.index, 0, tuple(range(whole.channels))))
        if "block" in kinds and block.siblings is not None:
            units.append(Unit("block", tower, layer.index, 0))
    return units


def _cuts(total: int, parts: int) -> list[tuple[int, int]]:
    """``total`` split into ``parts`` contiguous runs of nearly equal length."""
    edges = [total * part // parts for part in range(parts + 1)]
    return list(pairwise(edges))


def single_ablation(unit: Unit) -> Ablation:
    """The removal of this unit alone."""
    return Ablation(unit.tower, unit.layer, unit.part, unit.channels)


def nested_ablations(groups: Sequence[Unit]) -> list[Ablation]:
    """The removal of the first, the first two, … all neuron groups of one layer, least important first."""
    ablations, channels = [], tuple[int, ...]()
    for unit in groups:
        channels += unit.channels
        ablations.append(Ablation(unit.tower, unit.layer, unit.part, channels))
    return ablations


def check_common(towers: Collection[str], batch_size: int | None) -> None:
    """Raises unless towers and batch size are such as scoring and reconstruction take."""
    if isinstance(towers, str) or not towers or set(towers) - {"image", "text"}:
        raise ValueError(f"towers must be ('image',), ('text',) or both; found {towers!r}.")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, or None; found {batch_size}.")
