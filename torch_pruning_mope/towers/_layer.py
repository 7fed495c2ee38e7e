"""A block with its place, and counts of units."""

from dataclasses import dataclass
from typing import Literal

from ._tower import Block

TowerName = Literal["image", "text", "decoder"]


@dataclass(frozen=True)
class Layer:
    """One block of one tower.

    Attributes:
        tower: ``image``, ``text`` or ``decoder``.
        index: Position of the block in its tower.
        block: The block.
    """

    tower: TowerName
    index: int
    block: Block


@dataclass(frozen=True)
class Counts:
    """Heads, FFN neurons and residual channels: how many were removed, or are left."""

    heads: int = 0
    neurons: int = 0
    width: int = 0
