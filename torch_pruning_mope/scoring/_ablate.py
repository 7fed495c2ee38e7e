"""Taking units away for a while: by masks where that is removal, by physical removal on a copy where it is not."""

import copy
import warnings
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from .._ridge import unstacked
from .._state import hooked, kept_modules
from ..encoder import EncoderCore, TowerName
from ..surgery import masking_is_removal, removal_group
from ..towers import Part, Prunable, first_tensor
from ._refit import Place, Refits
from ._units import Ablation


class Ablator:
    """Takes units of a dual encoder away for a while.

    A mask zeroes a unit's channels before the layer that takes them. Where a norm stands in between (EVA's inner norms) or
    others use the channels too, that is not what the model without the unit would compute: there the unit is cut out of a
    copy of the model. The dependency graph decides, group by group.
    """

    def __init__(self, encoder: EncoderCore, refits: Refits | None = None) -> None:
        self._encoder = encoder
        self.refits = refits
        self._copy: EncoderCore | None = None
        self._graph: tp.DependencyGraph | None = None
        self.physical: frozenset[Place] = self._find()

    def is_masked(self, tower: TowerName) -> bool:
        """True if masking is removal for all units of a tower."""
        return not any(place[0] == tower for place in self.physical)

    @contextmanager
    def without(self, tower: TowerName, ablations: Collection[Ablation]) -> Iterator[EncoderCore]:
        """The encoder, or a copy of it, in which some units of a tower contribute nothing; restored afterwards."""
        gone: dict[tuple[int, Part], set[int]] = {}
        for ablation in ablations:
            gone.setdefault((ablation.layer, ablation.part), set()).update(ablation.channels)
        encoder = self._copied() if any((tower, *key) in self.physical for key in gone) else self._encoder
        blocks = encoder.towers[tower].blocks
        cuts = []
        masks: list[AbstractContextManager[Any]] = []
        for (layer, part), found in gone.items():
            units = encoder.sublayer(tower, layer, part)
            if part != "block" and units is None:
                raise ValueError(f"ablations must be of units that the model has; found {part} of layer {layer}.")
            place, channels = (tower, layer, part), sorted(found)
            if units is None or part == "block":
                masks.append(hooked([blocks[layer].module], _skip))
            elif place in self.physical and len(channels) < units.channels:
                cuts.append((units, channels, self._refitted_by_removal(encoder, place, units, channels)))
            elif self.refits is not None and place in self.refits:
                masks.append(_replaced(units.output, self.refits.solved(place, channels)))
            else:
                masks.append(_masked(units, channels))
        with ExitStack() as stack:
            # Masks first: they are as wide as the layers are before any is cut.
            for mask in masks:
                stack.enter_context(mask)
            for units, channels, weights in cuts:
                stack.enter_context(self._cut(encoder, units, channels))
                if weights is not None:
                    stack.enter_context(_replaced(units.output, weights))
            yield encoder

    def _copied(self) -> EncoderCore:
        if self._copy is None:
            with warnings.catch_warnings(action="ignore"):  # whatever there was to say of the model has been said
                self._copy = EncoderCore(copy.deepcopy(self._encoder.model))
        return self._copy

    def _refitted_by_removal(
        self, copied: EncoderCore, place: Place, units: Prunable, channels: list[int]
    ) -> Tensor | None:
        """Weights of an output layer refitted onto its own output in the whole model, with nothing else removed."""
        if self.refits is None or place not in self.refits:
            return None
        with torch.inference_mode(False), self._cut(copied, units, channels):
            return self.refits.physically(place, channels, copied, units.output)

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
        """Returns the places where a mask is not removal."""
        graph = self._encoder.dependency_graph()
        return frozenset(
            place
            for place, units in self._encoder.sublayers.items()
            if place[0] != "decoder" and not masking_is_removal(graph, units.output)
        )


def _masked(units: Prunable, channels: list[int]) -> AbstractContextManager[None]:
    """Inside, some channels are zero."""
    mask = units.mask(channels)
    return hooked([units.output], lambda _, args, kwargs: ((args[0] * mask, *args[1:]), kwargs), before=True)


def _replaced(layer: nn.Linear | nn.Conv2d, weights: Tensor) -> AbstractContextManager[None]:
    """Inside, a layer computes with other weights."""
    weight, bias = unstacked(layer, weights)

    def replaced(module: Any, args: tuple[Tensor, ...], _kwargs: Any, _output: Tensor) -> Tensor:
        convolves = isinstance(module, nn.Conv2d)
        out: Tensor = (module._conv_forward if convolves else nn.functional.linear)(args[0], weight, bias)
        return out

    return hooked([layer], replaced)


def _skip(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """Replaces a layer's hidden states by those that went in, and keeps what else it returns."""
    before = first_tensor((args, kwargs))
    leaves, structure = tree_flatten(output)
    place = next(place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor))
    leaves[place] = before
    return tree_unflatten(leaves, structure)
