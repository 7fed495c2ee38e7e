"""The unit that pruning removes."""

from dataclasses import dataclass
from typing import Literal

from ._layer import TowerName

Part = Literal["head", "neurons", "block"]
UnitKind = Literal["head", "neurons", "block", "attention", "mlp"]
KINDS: tuple[UnitKind, ...] = ("head", "neurons", "block", "attention", "mlp")
_PARTS: dict[UnitKind, Part] = {
    "head": "head",
    "attention": "head",
    "neurons": "neurons",
    "mlp": "neurons",
    "block": "block",
}


@dataclass(frozen=True)
class Unit:
    """One module that can be removed.

    Attributes:
        kind: ``head``, ``neurons`` (a group of FFN neurons), ``block``, or all heads or neurons of a block: ``attention``,
            ``mlp``.
        tower: ``image`` or ``text``.
        layer: Position of its block in the tower.
        index: Head number; or rank of the neuron group, 0 the least important by the rewiring; or 0.
        channels: What it owns of the output linear's input; empty for a block.
    """

    kind: UnitKind
    tower: TowerName
    layer: int
    index: int
    channels: tuple[int, ...] = ()

    @property
    def part(self) -> Part:
        """The part of its block that loses channels: ``head`` for the attention, ``neurons`` for the MLP, ``block``: both."""
        return _PARTS[self.kind]

    def __str__(self) -> str:
        return f"{self.tower} layer {self.layer} {self.kind} {self.index}"
