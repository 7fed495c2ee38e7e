"""Removal of given heads, neurons and blocks through Torch-Pruning's dependency graph."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from .._state import kept_flags
from ..encoder import EncoderCore, TowerName
from ..surgery import reached_leaves, removal_group
from ..towers import Unit


def remove_units(encoder: EncoderCore, units: Sequence[Unit], *, checked: bool = True) -> None:
    """Mutates the encoder's model: removes some units through Torch-Pruning's dependency graph; whole layers last.

    A sub-layer that loses all its units keeps layers of no width, which put out the bias of its last; what is left is what
    masks would leave.

    Args:
        encoder: The dual encoder.
        units: Units to remove, numbered as in the model before.
        checked: Check that the dependency graph covers every parameter; in vain for a copy of a model whose graph
            has been.

    Raises:
        ValueError: If the model has no such unit. Nothing is removed.
    """
    cut(encoder, units, checked=checked)
    if any(not part.channels for layer in encoder.layers for part in layer.block.prunables):
        _freeze_unused(encoder)


def cut(encoder: EncoderCore, units: Sequence[Unit], *, checked: bool = True) -> None:
    """Mutates the encoder's model as :func:`remove_units` does, but for gradients that are no longer needed."""
    whole: dict[TowerName, list[int]] = {}
    for tower, layer in sorted({(unit.tower, unit.layer) for unit in units if unit.kind == "block"}):
        whole.setdefault(tower, []).append(layer)
    gone: dict[nn.Module, set[int]] = {}
    for unit in units:
        if unit.layer not in whole.get(unit.tower, ()):
            gone.setdefault(_output_of(encoder, unit), set()).update(unit.channels)
    for tower, layers in whole.items():
        encoder.check_blocks(tower, layers)
    graph: Any = encoder.dependency_graph(checked=checked) if gone else None
    with kept_flags(encoder.model):
        for output, channels in gone.items():
            removal_group(graph, output, sorted(channels)).prune()
    for tower, layers in whole.items():
        encoder.remove_blocks(tower, layers)


def _output_of(encoder: EncoderCore, unit: Unit) -> nn.Module:
    """The layer that takes a unit's channels; raises if there is none with such channels."""
    tower = encoder.towers.get(unit.tower)
    if tower is not None and 0 <= unit.layer < len(tower.blocks):
        found = encoder.sublayer(unit.tower, unit.layer, unit.part)
        if found is not None and unit.channels and min(unit.channels) >= 0 and max(unit.channels) < found.channels:
            return found.output
    raise ValueError(
        f"units must be of the model as it is; found {unit.part} of {unit.tower} layer {unit.layer}, channels "
        f"{sorted(unit.channels)[:3]}…, which it has not."
    )


def _freeze_unused(encoder: EncoderCore) -> None:
    """Mutates the model: what came before a sub-layer that is empty now gets no gradients, which trainers would miss."""
    inputs = encoder.example_inputs
    used = reached_leaves(
        encoder.model, lambda: [encoder.embed("image", inputs["images"]), encoder.embed("text", inputs["tokens"])]
    )
    for layer in encoder.layers:
        for units in layer.block.prunables:
            if not units.channels:
                for parameter in layer.block.module.parameters():
                    parameter.requires_grad_(parameter.requires_grad and parameter in used)
