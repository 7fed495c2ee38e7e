"""Physical removal: prunable attention, the dependency graph of a dual encoder, and what a pruner is asked for."""

from ._attention import PrunableAttention
from ._graph import (
    UnwrappedParameters,
    build_graph,
    check_grouped,
    customized_pruners,
    tracing_forward,
)
from ._swap import register_attention, swap_attention

__all__ = [
    "PrunableAttention",
    "UnwrappedParameters",
    "build_graph",
    "check_grouped",
    "customized_pruners",
    "register_attention",
    "swap_attention",
    "tracing_forward",
]
