"""Physical removal: prunable attention, the dependency graph of a dual encoder, and what a pruner is asked for."""

from . import _open_clip as _open_clip  # registers itself
from . import _timm as _timm
from . import _torch as _torch
from . import _transformers as _transformers
from ._attention import HeadProjection, PrunableAttention
from ._check import reached_leaves, ungrouped
from ._graph import (
    UnwrappedParameters,
    all_groups,
    build_graph,
    check_untied,
    kept_whole,
    masking_is_removal,
    removal_group,
    scalars,
    tracing_forward,
    uncuttable,
)
from ._parts import FusedLinear, Parts, attach, parts_of, seal, share
from ._pruners import customized_pruners
from ._record import noted_channels, record
from ._swap import exchange, prunable_attention, register_attention, swap_attention

__all__ = [
    "FusedLinear",
    "HeadProjection",
    "Parts",
    "PrunableAttention",
    "UnwrappedParameters",
    "all_groups",
    "attach",
    "build_graph",
    "check_untied",
    "customized_pruners",
    "exchange",
    "kept_whole",
    "masking_is_removal",
    "noted_channels",
    "parts_of",
    "prunable_attention",
    "reached_leaves",
    "record",
    "register_attention",
    "removal_group",
    "scalars",
    "seal",
    "share",
    "swap_attention",
    "tracing_forward",
    "uncuttable",
    "ungrouped",
]
