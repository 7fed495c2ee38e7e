"""Checks that a dependency graph knows all that the outputs of a model depend on."""

from collections.abc import Callable, Sequence
from typing import Any

import torch_pruning as tp
from torch import Tensor, nn

from .._state import trainable
from ._graph import group_or_none


def ungrouped(
    graph: tp.DependencyGraph,
    groups: Sequence[Any],
    model: nn.Module,
    joint: Sequence[nn.Parameter],
    left_alone: Sequence[nn.Parameter],
    outputs: Callable[[], Sequence[Tensor]] = lambda: (),
) -> dict[nn.Parameter, str]:
    """Parameters that the outputs depend on, in no pruning group and not knowingly left alone."""
    known = set(left_alone)
    own = (  # a pool's learnt queries, say, which no layer makes
        group_or_none(graph, parameter, tp.prune_parameter_out_channels, [0])
        for parameter in joint
        if parameter in graph.module2node
    )
    for group in [*groups, *own]:
        for dep, _ in group or ():
            target = dep.target.module
            known.update([target] if isinstance(target, nn.Parameter) else target.parameters())
    known -= {parameter for parameter, _ in graph.unwrapped_parameters} - set(joint) - set(left_alone)
    missed = {parameter: name for name, parameter in model.named_parameters() if parameter not in known}
    if missed:
        used = _reached(outputs())
        missed = {parameter: name for parameter, name in missed.items() if parameter in used}
    return missed


def reached_leaves(model: nn.Module, outputs: Callable[[], Sequence[Tensor]]) -> set[nn.Parameter]:
    """The parameters that some outputs depend on."""
    with trainable(model):
        return _reached(outputs())


def _reached(outputs: Sequence[Tensor]) -> set[Any]:
    """The leaves that some tensors were computed from."""
    stack = [output.grad_fn for output in outputs]
    seen, leaves = set(stack), set()
    while stack:
        function: Any = stack.pop()
        if hasattr(function, "variable"):
            leaves.add(function.variable)
        for following, _ in getattr(function, "next_functions", ()):
            if following is not None and following not in seen:
                seen.add(following)
                stack.append(following)
    return leaves
