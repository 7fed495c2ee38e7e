"""The dependency graph of a dual encoder."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from ..errors import UngroupedParametersError
from ..surgery import (
    PrunableAttention,
    all_groups,
    build_graph,
    check_untied,
    parts_of,
    scalars,
    tracing_forward,
    uncuttable,
    ungrouped,
)
from ._layer import TowerName
from ._opaque import OpaqueTower
from ._registry import Towers
from ._tower import BlockTower


class GraphMixin:
    """Adds Torch-Pruning's dependency graph to a dual encoder."""

    model: Any
    unprunable: dict[str, str]
    """Parts that stay as they are, by name, and why."""
    _towers: Towers
    _unread: dict[TowerName, list[str]]
    _untraced: dict[TowerName, str]
    """Towers that Torch-Pruning cannot trace, and why: they stay whole, and out of the graph."""

    @property
    def towers(self) -> dict[TowerName, BlockTower]:
        """The towers by name."""
        raise NotImplementedError

    @property
    def example_inputs(self) -> dict[str, Tensor]:
        """One image and one caption of the right shapes, ``images`` and ``tokens``.

        Torch-Pruning's own functions call the whole model, so they want the names that its ``forward`` has: for open_clip's
        models ``tp.utils.count_ops_and_params(model, tuple(inputs.values()))``, for transformers' the dict
        ``{"pixel_values": inputs["images"], "input_ids": inputs["tokens"]}``. With a ``forward_fn`` they take any:
        ``build_dependency(model, inputs, forward_fn=lambda _, x: [encoder.embed("image", x["images"]), ...])``.
        """
        weight = next(self.model.parameters())
        with torch.inference_mode(False):  # the tracer's autograd cannot use inference tensors
            return {
                "images": torch.zeros(1, *self._towers.image_shape, device=weight.device, dtype=weight.dtype),
                "tokens": torch.ones(1, self._towers.context_length, dtype=torch.long, device=weight.device),
            }

    def graph_arguments(self) -> dict[str, Any]:
        """Inputs, forward function and bare parameters, as Torch-Pruning's constructors take them."""
        traced = {name: tower for name, tower in self.towers.items() if name not in self._untraced}
        encoders = {"images": ("image", self._towers.encode_image), "tokens": ("text", self._towers.encode_text)}
        unwrapped = [pair for tower in traced.values() for pair in tower.joint_parameters]
        # Torch-Pruning warns about every bare parameter it is not told of; these are in no graph.
        unwrapped += [(parameter, 0) for parameter in self._left_alone()]
        return {
            "example_inputs": self.example_inputs,
            "forward_fn": tracing_forward(
                {inputs: encode for inputs, (name, encode) in encoders.items() if name in traced},
                self.model,
                self._towers.decode,
            ),
            "unwrapped_parameters": unwrapped,
        }

    def _left_alone(self) -> list[nn.Parameter]:
        """The temperature and its bias, and what attention leaves alone."""
        found = [getattr(self.model, name, None) for name in ("logit_scale", "logit_bias")]
        own = [parameter for parameter in found if isinstance(parameter, nn.Parameter)]
        attentions = (module for module in self.model.modules() if isinstance(module, PrunableAttention))
        return own + [parameter for attention in attentions for parameter in attention.left_alone()]

    def dependency_graph(self, *, checked: bool = True) -> tp.DependencyGraph:
        """Torch-Pruning's graph of both towers; ``checked`` to cover every parameter, which takes most of the time."""
        return self.checked_graph()[0] if checked else build_graph(self.model, **self.graph_arguments())

    def checked_graph(self) -> tuple[tp.DependencyGraph, list[Any]]:
        """The graph and all its groups; see :meth:`dependency_graph`."""
        arguments = self.graph_arguments()
        graph = build_graph(self.model, **arguments)
        check_untied(graph, self.model)
        groups = all_groups(graph)
        joint = [parameter for parameter, _ in arguments["unwrapped_parameters"]]
        run = partial(arguments["forward_fn"], self.model, arguments["example_inputs"])
        alone = self._left_alone() + scalars(arguments["unwrapped_parameters"])
        self._note_ungrouped(ungrouped(graph, groups, self.model, joint, alone, run))
        return graph, groups

    def _note_ungrouped(self, missed: Mapping[nn.Parameter, str]) -> None:
        """Notes layers that the graph does not understand in towers that it need not; refuses others."""
        known = [module for module in self.model.modules() if any(parts.shown for parts in parts_of(module))]
        for name in self._untraced:
            tower = self.towers[name]
            known += tower.own_modules() if isinstance(tower, OpaqueTower) else ()
        left = {id(parameter) for module in known for parameter in module.parameters()}
        missed = {parameter: name for parameter, name in missed.items() if id(parameter) not in left}
        self._unread = {}
        for name, tower in self.towers.items():
            own = set(tower.root.parameters()) if isinstance(tower, OpaqueTower) else set()
            found = [path for parameter, path in missed.items() if parameter in own]
            missed = {parameter: path for parameter, path in missed.items() if parameter not in own}
            if found:
                self._unread[name] = found
                reason = (
                    "Torch-Pruning cannot follow channels through it: it stays, and so does the tower's residual width"
                )
                self.unprunable |= {path.rpartition(".")[0]: reason for path in found}
        if missed:
            raise UngroupedParametersError(
                "every parameter must be in a pruning group or knowingly left alone; found neither for "
                f"{list(missed.values())}. If the model computes with them outside its layers, name them in the tower's "
                "joint_parameters."
            )

    def uncuttable(self, graph: tp.DependencyGraph, groups: Sequence[Any]) -> list[nn.Module]:
        """Layers whose output channels must stay, one per group: as ``ignored_layers`` they spare it."""
        firm = uncuttable(graph, groups)
        blocks = (block for tower in self.towers.values() for block in tower.blocks)
        sources = {source for block in blocks for units in block.prunables for source in units.sources}
        for name, tower in self.towers.items():
            if not isinstance(tower, OpaqueTower) or not (name in self._unread or _has_unreadable(tower.root)):
                continue
            inside = tower.own_modules()
            for group in groups:
                root = group[0].dep.target.module
                made = {item.dep.target.module for item in group if graph.is_out_channel_pruning_fn(item.dep.handler)}
                if root in inside and not made & sources:
                    firm.append(root)
        return firm


def _has_unreadable(root: nn.Module) -> bool:
    """True if an encoder has layers whose channels Torch-Pruning ties in ways of its own."""
    return any(isinstance(module, nn.RNNBase | nn.MultiheadAttention) for module in root.modules())
