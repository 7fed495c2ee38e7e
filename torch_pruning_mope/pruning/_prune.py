"""Driving Torch-Pruning's pruner, with a check that what goes is what was asked for."""

from collections.abc import Callable, Sequence
from typing import Any

import torch_pruning as tp

from .._state import kept_flags
from ..errors import PruningMismatchError
from ..towers import Counts
from ._arguments import PrunerMixin
from ._request import PruningRequest


def prune(
    encoder: PrunerMixin,
    importance: Any,
    *,
    between_steps: Callable[[int], None] | None = None,
    **ratios: Any,
) -> Counts:
    """Mutates the encoder's model: removes heads, neurons and residual channels with ``tp.pruner.MetaPruner``.

    What a step would remove is counted before any of it is removed.

    Args:
        encoder: The dual encoder.
        importance: MoPE's or Torch-Pruning's.
        between_steps: Called with the number of steps done after each but the last of ``iterative_steps`` (to recover, or
            to accumulate gradients anew).
        **ratios: See :meth:`torch_pruning_mope.DualEncoder.pruner_arguments`.

    Returns:
        What was removed.

    Raises:
        PruningMismatchError: If the last step would leave more or less than asked for. Torch-Pruning's own criteria can,
            under global pruning; :class:`torch_pruning_mope.WeightedImportance` cannot. Steps before it have been made.
    """
    chosen = {**ratios, "pruning_ratio_dict": ratios.get("pruning_ratio_dict") or {}}
    request = encoder.request(**chosen)
    asked = request.asked  # of the model as it is before the first step
    pruner = tp.pruner.MetaPruner(encoder.model, importance=importance, **encoder.pruner_arguments(**ratios))
    removed = Counts()
    for step in range(1, request.iterative_steps + 1):
        groups = list(pruner.step(interactive=True))
        planned = _count(groups, request)
        removed = Counts(
            removed.heads + planned.heads, removed.neurons + planned.neurons, removed.width + planned.width
        )
        if step == request.iterative_steps:
            _check(request, asked, removed)
        with kept_flags(encoder.model):
            for group in groups:
                group.prune()
        if between_steps is not None and step < request.iterative_steps:
            between_steps(step)
    return removed


_TAKES = {tp.prune_linear_in_channels, tp.prune_conv_in_channels}
_MAKES = {tp.prune_linear_out_channels, tp.prune_conv_out_channels}


def _count(groups: Sequence[Any], request: PruningRequest) -> Counts:
    """Units that some groups would remove, of the layers that the request counts."""
    heads = {sublayer.output: sublayer.unit_size for sublayer in request.attentions}
    neurons = {sublayer.output for sublayer in request.feed_forwards}
    streams = {output for output, _ in request.widths}
    found = {"heads": 0, "neurons": 0, "width": 0}
    for group in groups:
        for dep, idxs in group:
            module = dep.target.module
            if dep.handler in _TAKES and module in heads:
                found["heads"] += len(idxs) // heads[module]
            elif dep.handler in _TAKES and module in neurons:
                found["neurons"] += len(idxs)
            elif dep.handler in _MAKES and module in streams:
                found["width"] += len(idxs)
    return Counts(**found)


def _check(request: PruningRequest, asked: Counts, removed: Counts) -> None:
    slack = Counts()
    if request.round_to is not None:  # rounds what is left of each layer down
        step = request.round_to - 1
        slack = Counts(0, step * len(request.feed_forwards), step * len(request.widths))
    for kind in ("heads", "neurons", "width"):
        want, got, extra = getattr(asked, kind), getattr(removed, kind), getattr(slack, kind)
        if not (want <= got <= want + extra if want else got == 0):
            raise PruningMismatchError(
                f"{kind} to remove must be {want}{f' to {want + extra}' if extra else ''}; Torch-Pruning would remove "
                f"{got}. Ties and emptied layers do this under global pruning: use MoPEImportance, or wrap the criterion as "
                "WeightedImportance(encoder, [(criterion, 1.0)]), and give a fallback for the residual width."
            )
