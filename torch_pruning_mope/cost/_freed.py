"""Parameters and multiply-adds that go with a unit."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from .._state import evaluation_mode
from ..encoder import EncoderCore, TowerName
from ..towers import Unit
from ._footprint import Footprint
from ._multiply_adds import multiply_adds_between


def freed_parameters(encoder: EncoderCore, unit: Unit) -> int:
    """Parameters that go with a unit when it is cut out of the whole model."""
    # Biases of output linears go with no head and no neuron, and norms with their block alone.
    if unit.kind == "block":
        return _count(encoder.towers[unit.tower].blocks[unit.layer].module)
    units = encoder.sublayer(unit.tower, unit.layer, unit.part)
    if units is None:
        raise ValueError(f"unit must be of the model as it is now; found {unit}, which it has not.")
    # All parameters of the layers around belong to the units, to each as many as to any other of its kind.
    inner = sum(_count(source) for source in units.sources)
    return (inner + units.output.weight.numel()) * len(unit.channels) // units.channels


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def freed_multiply_adds(encoder: EncoderCore, whole: Mapping[TowerName, Footprint]) -> Callable[[Unit], float]:
    """Multiply-adds of one input that go with a unit cut out of the whole model; measured in one run of each tower."""
    spans: dict[tuple[str, int, str], tuple[Sequence[nn.Module], nn.Module]] = {
        (layer.tower, layer.index, "block"): ((layer.block.module,), layer.block.module) for layer in encoder.layers
    }
    spans |= {place: (units.sources, units.output) for place, units in encoder.sublayers.items()}
    inputs = encoder.example_inputs
    with torch.no_grad(), evaluation_mode(encoder.model):
        measured = multiply_adds_between(
            lambda: [encoder.embed("image", inputs["images"]), encoder.embed("text", inputs["tokens"])], spans
        )

    def freed(unit: Unit) -> float:
        found = measured.get((unit.tower, unit.layer, unit.part))
        if not found:  # its layers are not called as modules
            size = whole[unit.tower]
            return freed_parameters(encoder, unit) * size.multiply_adds / size.parameters
        units = None if unit.kind == "block" else encoder.sublayer(unit.tower, unit.layer, unit.part)
        return float(found) if units is None else found * len(unit.channels) / units.channels

    return freed
