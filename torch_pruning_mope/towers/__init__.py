"""Towers: the views of an encoder, one file per family of models, registered by module type."""

from . import _open_clip as _open_clip  # these register themselves
from . import _timm as _timm
from . import _torch as _torch
from . import _transformers as _transformers
from ._apart import ApartTower
from ._discover import register_channels
from ._find import FindMixin
from ._layer import Counts, Layer, TowerName
from ._look import first_tensor
from ._opaque import OpaqueTower
from ._pair import TwoEncoders
from ._prunable import Channels, Prunable
from ._reach import Reaching, patches, reaching_rows, rows
from ._registry import Towers, register_towers
from ._structure import is_known, towers_of
from ._sublayers import AttentionSublayer, FeedForwardSublayer, Stream, Sublayer
from ._summary import summary
from ._tower import Block, BlockTower, Tower
from ._unit import KINDS, Part, Unit, UnitKind

__all__ = [
    "KINDS",
    "ApartTower",
    "AttentionSublayer",
    "Block",
    "BlockTower",
    "Channels",
    "Counts",
    "FeedForwardSublayer",
    "FindMixin",
    "Layer",
    "OpaqueTower",
    "Part",
    "Prunable",
    "Reaching",
    "Stream",
    "Sublayer",
    "Tower",
    "TowerName",
    "Towers",
    "TwoEncoders",
    "Unit",
    "UnitKind",
    "first_tensor",
    "is_known",
    "patches",
    "reaching_rows",
    "register_channels",
    "register_towers",
    "rows",
    "summary",
    "towers_of",
]
