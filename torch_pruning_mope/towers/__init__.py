"""Towers: stem → blocks → readout, one file per family of models, registered by module type."""

from . import _open_clip as _open_clip  # registers itself
from ._registry import Towers, is_known, register_towers, towers_of
from ._sublayers import AttentionSublayer, FeedForwardSublayer, Stream, Sublayer
from ._tower import Block, Tower

__all__ = [
    "AttentionSublayer",
    "Block",
    "FeedForwardSublayer",
    "Stream",
    "Sublayer",
    "Tower",
    "Towers",
    "is_known",
    "register_towers",
    "towers_of",
]
