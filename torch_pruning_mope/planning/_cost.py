"""What removing a unit frees: parameters, or multiply-adds."""

from collections.abc import Mapping, Sequence
from functools import cache, partial

import torch
from torch import nn

from .._flops import multiply_adds_between
from .._state import evaluation_mode
from ..encoder import EncoderCore, TowerName
from ..scoring import Unit, freed_parameters
from ._footprint import TOWERS, Footprint
from ._order import Cost, Step


def parameter_cost(encoder: EncoderCore) -> Cost:
    """What a unit frees in parameters, cut out of the whole model."""
    return cache(partial(freed_parameters, encoder))


def multiply_add_cost(encoder: EncoderCore, whole: Mapping[TowerName, Footprint]) -> Cost:
    """What a unit frees in multiply-adds of one input, cut out of the whole model; measured in one run of each tower.

    Args:
        encoder: The dual encoder; left as it is.
        whole: Its footprints, to estimate layers by that are not run as modules.

    Returns:
        A function of units.
    """
    spans: dict[tuple[str, int, str], tuple[Sequence[nn.Module], nn.Module]] = {}
    for layer in encoder.layers:
        spans[layer.tower, layer.index, "block"] = ((layer.block.module,), layer.block.module)
        for part, units in (("head", layer.block.attention), ("neurons", layer.block.feed_forward)):
            if units is not None and units.channels:
                spans[layer.tower, layer.index, part] = (units.sources, units.output)
    inputs = encoder.example_inputs
    with torch.no_grad(), evaluation_mode(encoder.model):
        measured = multiply_adds_between(
            lambda: [encoder.embed("image", inputs["images"]), encoder.embed("text", inputs["tokens"])], spans
        )

    def cost(unit: Unit) -> int | float:
        found = measured.get((unit.tower, unit.layer, unit.part))
        if not found:  # its layers are not called as modules
            size = whole[unit.tower]
            return freed_parameters(encoder, unit) * size.multiply_adds / size.parameters
        block = encoder.towers[unit.tower].blocks[unit.layer]
        if unit.kind == "block":
            return found
        units = block.attention if unit.part == "head" else block.feed_forward
        return found if units is None else found * len(unit.channels) / units.channels

    return cost


def cumulative(order: Sequence[Step], cost: Cost, towers: Sequence[str] = TOWERS) -> list[float]:
    """What the first, the first two, … steps of an order free together, as nearly as costs of single units say.

    Args:
        order: The steps. What goes with a block is not counted again.
        cost: What one unit frees.
        towers: Where.

    Returns:
        A number per step.
    """
    freed: dict[tuple[str, int, str], float] = {}
    whole: dict[tuple[str, int], float] = {}
    running, total = [], 0.0
    for step in order:
        for score in step:
            unit = score.unit
            layer = (unit.tower, unit.layer)
            if unit.tower not in towers or layer in whole:
                continue
            own = float(cost(unit))
            if unit.kind == "block":
                total += own - sum(amount for key, amount in freed.items() if key[:2] == layer)
                whole[layer] = own
                continue
            part = (*layer, unit.part)
            before = freed.get(part, 0.0)
            freed[part] = own if unit.kind in {"attention", "mlp"} else before + own
            total += freed[part] - before
        running.append(total)
    return running
