"""Taking units away for a while: by masks where that is removal, by physical removal on a copy where it is not."""

import copy
import warnings
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch_pruning as tp
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from .._state import kept_modules
from ..encoder import EncoderCore, TowerName
from ..surgery import masking_is_removal, removal_group
from ..towers import Prunable, first_tensor
from ._units import Ablation, Part

Place = tuple[TowerName, int, Part]


class Ablator:
    """Takes units of a dual encoder away for a while.

    A mask zeroes a unit's channels before the layer that takes them. Where a norm stands in between (EVA's inner norms) or
    others use the channels too, that is not what the model without the unit would compute: there the unit is cut out of a
    copy of the model. The dependency graph decides, group by group.

    Args:
        encoder: The dual encoder; left as it is.
    """

    def __init__(self, encoder: EncoderCore) -> None:
        self._encoder = encoder
        self._copy: EncoderCore | None = None
        self._graph: tp.DependencyGraph | None = None
        self.physical: frozenset[Place] = self._find()

    def is_masked(self, tower: TowerName) -> bool:
        """Whether masking is removal for all units of a tower."""
        return not any(place[0] == tower for place in self.physical)

    @contextmanager
    def without(self, tower: TowerName, ablations: Collection[Ablation]) -> Iterator[EncoderCore]:
        """The encoder, or a copy of it, in which some units of a tower contribute nothing; restored afterwards.

        Args:
            tower: The tower.
            ablations: What contributes nothing.

        Yields:
            What to run.

        Raises:
            ValueError: If the model has no such units.
        """
        gone: dict[tuple[int, Part], set[int]] = {}
        for ablation in ablations:
            gone.setdefault((ablation.layer, ablation.part), set()).update(ablation.channels)
        encoder = self._encoder
        if any((tower, *key) in self.physical for key in gone):
            if self._copy is None:
                with warnings.catch_warnings(action="ignore"):  # whatever there was to say of the model has been said
                    self._copy = EncoderCore(copy.deepcopy(encoder.model))
            encoder = self._copy
        with ExitStack() as stack:
            blocks = encoder.towers[tower].blocks
            # Masks first: they are as wide as the layers are before any is cut.
            for (layer, part), channels in sorted(gone.items(), key=lambda item: (tower, *item[0]) in self.physical):
                block = blocks[layer]
                if part == "block":
                    handle = block.module.register_forward_hook(_skip, with_kwargs=True)
                    stack.callback(handle.remove)
                    continue
                units = block.attention if part == "head" else block.feed_forward
                if units is None:
                    raise ValueError(f"ablations must be of units that the model has; found {part} of layer {layer}.")
                if (tower, layer, part) in self.physical and len(channels) < units.channels:
                    stack.enter_context(self._cut(encoder, units, sorted(channels)))
                else:
                    stack.enter_context(_masked(units, sorted(channels)))
            yield encoder

    @contextmanager
    def _cut(self, copied: EncoderCore, units: Prunable, channels: list[int]) -> Iterator[None]:
        """The copy without some channels; physically."""
        if self._graph is None:
            self._graph = copied.dependency_graph()
        group = removal_group(self._graph, units.output, channels)
        with kept_modules(copied.model):
            try:
                group.prune(record_history=False)
                yield
            finally:
                if any(isinstance(dep.target.module, nn.Parameter) for dep, _ in group):
                    self._graph = None  # it has lost sight of the parameters that come back

    def _find(self) -> frozenset[Place]:
        """Where a mask is not removal."""
        graph = self._encoder.dependency_graph()
        places: list[tuple[Place, Prunable | None]] = []
        for layer in self._encoder.layers:
            if layer.tower != "decoder":
                places.append(((layer.tower, layer.index, "head"), layer.block.attention))
                places.append(((layer.tower, layer.index, "neurons"), layer.block.feed_forward))
        return frozenset(
            place
            for place, units in places
            if units is not None and units.channels and not masking_is_removal(graph, units.output)
        )


@contextmanager
def _masked(units: Prunable, channels: list[int]) -> Iterator[None]:
    """Hooks that zero some channels, gone afterwards."""
    mask = units.mask(channels)
    handle = units.output.register_forward_pre_hook(lambda _, inputs: (inputs[0] * mask, *inputs[1:]))
    try:
        yield
    finally:
        handle.remove()


def _skip(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """What a layer would put out if it did nothing: what went in, among whatever it puts out besides."""
    before = first_tensor((args, kwargs))
    leaves, structure = tree_flatten(output)
    place = next(place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor))
    leaves[place] = before
    return tree_unflatten(leaves, structure)
