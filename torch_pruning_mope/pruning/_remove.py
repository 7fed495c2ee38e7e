"""Removal of given heads, neurons and blocks through Torch-Pruning's dependency graph."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from ..encoder import EncoderCore, TowerName
from ..surgery import reached_leaves
from ..towers import Block


@runtime_checkable
class Removable(Protocol):
    """Channels of one sub-layer, or a whole block; :class:`torch_pruning_mope.scoring.Unit` is one."""

    @property
    def kind(self) -> str:
        """``block``, or something smaller."""

    @property
    def tower(self) -> TowerName:
        """``image``, ``text`` or ``decoder``."""

    @property
    def layer(self) -> int:
        """Position of its block in the tower."""

    @property
    def part(self) -> str:
        """The sub-layer that loses channels: ``head`` for the attention, ``neurons`` for the MLP."""

    @property
    def channels(self) -> tuple[int, ...]:
        """Input channels of the sub-layer's output layer."""


def remove_units(encoder: EncoderCore, units: Sequence[Removable]) -> None:
    """Mutates the encoder's model: removes some units through Torch-Pruning's dependency graph; whole layers last.

    A sub-layer that loses all its units keeps layers of no width, which put out the bias of its last; what is left is what
    masks would leave.

    Args:
        encoder: The dual encoder.
        units: What goes, numbered as in the model before.

    Raises:
        ValueError: If the model has no such unit.
    """
    cut(encoder, units)
    if any(not part.channels for layer in encoder.layers for part in layer.block.prunables):
        _freeze_unused(encoder)


def cut(encoder: EncoderCore, units: Sequence[Removable], *, checked: bool = True) -> None:
    """Mutates the encoder's model as :func:`remove_units` does, but for gradients that are no longer needed."""
    whole: dict[TowerName, list[int]] = {}
    for tower, layer in sorted({(unit.tower, unit.layer) for unit in units if unit.kind == "block"}):
        whole.setdefault(tower, []).append(layer)
    gone: dict[Prunable, set[int]] = {}
    for unit in units:
        if unit.layer not in whole.get(unit.tower, ()):
            gone.setdefault(_channels_of(encoder, unit), set()).update(unit.channels)
    for tower, layers in whole.items():
        encoder.towers[tower].check_deletable(layers)
    graph: Any = encoder.dependency_graph(checked=checked) if gone else None
    flags = {name: parameter.requires_grad for name, parameter in encoder.model.named_parameters()}
    for prunable, channels in gone.items():
        takes = graph.get_pruner_of_module(prunable.output).prune_in_channels
        graph.get_pruning_group(prunable.output, takes, sorted(channels)).prune()
    for name, parameter in encoder.model.named_parameters():
        parameter.requires_grad_(flags[name])  # Torch-Pruning's new parameters are all trainable
    for tower, layers in whole.items():
        encoder.remove_blocks(tower, layers)


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
