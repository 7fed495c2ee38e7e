"""Torch-Pruning's dependency graph of a dual encoder, with what makes it right for one.

Torch-Pruning 1.6.1 is used unmodified; every correction travels in the arguments of its own constructors.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from .._state import exclusive, trainable, without_tables
from ..errors import UnsupportedModelError, WrongModelError
from ._attention import tracing
from ._pruners import customized_pruners

UnwrappedParameters = list[tuple[nn.Parameter, int]]


_OPERATIONS = {
    getattr(tp.ops.OPTYPE, name) for name in ("ELEMENTWISE", "RESHAPE", "CONCAT", "SPLIT", "UNBIND", "EXPAND", "SLICE")
}
"""Nodes of the graph that hold no parameters."""


def tracing_forward(
    encoders: dict[str, Callable[[Tensor], Tensor]],
    model: nn.Module,
    decode: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Callable[[nn.Module, dict[str, Tensor]], list[Tensor]]:
    """A ``forward_fn`` of encoders by the name of their inputs, which keeps them apart and the model as it was."""
    # It returns the two features rather than logits, which would couple the towers (trap L); it turns gradients on for
    # the trace, because frozen parameters vanish from the graph (trap M); it gives back the training modes that the
    # model has *now*, because Torch-Pruning has already left it in eval mode when the function runs (trap V); and if
    # the model fails, it takes off the hooks that Torch-Pruning would leave behind.
    flags = {module: module.training for module in model.modules()}

    def forward(traced: nn.Module, inputs: dict[str, Tensor]) -> list[Tensor]:
        try:
            if traced is not model:
                raise WrongModelError(
                    "a pruner must be given the model that its arguments were made for; found another, such as a copy. Wrap "
                    "that one and call its pruner_arguments."
                )
            with without_tables(traced), trainable(traced), tracing(traced):
                outputs = [encode(inputs[name]) for name, encode in encoders.items()]
                return outputs if decode is None else [*outputs, decode(inputs["images"], inputs["tokens"])]
        except BaseException:
            for module in traced.modules():
                for handle, hook in list(module._forward_hooks.items()):
                    if hook.__module__.startswith("torch_pruning."):
                        del module._forward_hooks[handle]
            raise
        finally:
            for module, flag in flags.items():
                module.training = flag

    return forward


class _Graph(tp.DependencyGraph):  # type: ignore[misc]
    """A graph that gives up a group that grows without end, as those of relative positions and of folded places may.

    ``unread`` holds layers whose output channels Torch-Pruning cannot follow, as :func:`all_groups` found them.
    """

    unread: tuple[nn.Module, ...] = ()

    def get_pruning_group(self, *args: Any, **kwargs: Any) -> Any:
        """As in Torch-Pruning; raises RuntimeError instead of running on for ever."""
        self.left = 10 * len(self.module2node) + 500  # DenseNets take 2.6 times the nodes, others under 1
        return super().get_pruning_group(*args, **kwargs)


class _Dependencies(list[Any]):
    """A node's dependencies, which count how often they are gone through, and for how many channels."""

    def __init__(self, graph: _Graph, items: Iterable[Any]) -> None:
        super().__init__(items)
        self._graph = graph

    def __iter__(self) -> Iterator[Any]:
        # Channels that are counted again at every round are the other way to grow; only the caller knows of them.
        self._graph.left -= 1 + len(sys._getframe(1).f_locals.get("idxs", ())) // 4096
        if self._graph.left < 0:
            raise RuntimeError("Torch-Pruning's search for channels that go together does not end")
        return super().__iter__()


def build_graph(
    model: nn.Module,
    example_inputs: dict[str, Tensor],
    forward_fn: Callable[[nn.Module, dict[str, Tensor]], list[Tensor]],
    unwrapped_parameters: UnwrappedParameters,
) -> tp.DependencyGraph:
    """The dependency graph, corrected."""
    with exclusive(model), torch.inference_mode(False), torch.enable_grad():
        graph = _Graph()
        graph.build_dependency(
            model,
            example_inputs=example_inputs,
            forward_fn=forward_fn,
            unwrapped_parameters=list(unwrapped_parameters),
            customized_pruners=customized_pruners(model),
            ignored_params=scalars(unwrapped_parameters),
        )
    for node in graph.module2node.values():
        node.dependencies = _Dependencies(graph, node.dependencies)
    return graph


def scalars(unwrapped_parameters: UnwrappedParameters) -> list[nn.Parameter]:
    """Bare parameters of a single number, which all channels share and none takes along."""
    return [parameter for parameter, _ in unwrapped_parameters if parameter.numel() == 1]


def removal_group(graph: tp.DependencyGraph, output: nn.Module, channels: Sequence[int] | None = None) -> Any:
    """The group that goes with input channels of a sub-layer's output layer; of all of them by default."""
    pruner = graph.get_pruner_of_module(output)
    chosen = range(pruner.get_in_channels(output)) if channels is None else channels
    return graph.get_pruning_group(output, pruner.prune_in_channels, list(chosen))


def masking_is_removal(graph: tp.DependencyGraph, output: nn.Module) -> bool:
    """Returns whether zeroing input channels of a layer is what removing them from the model would do, for any of them."""
    # It is, unless a norm over the channels stands before that layer, which would then be over fewer, or another layer
    # or a bare parameter has to do with them too. Batch normalisation and depthwise convolutions keep channels apart.
    for dep, _ in removal_group(graph, output):
        module = dep.target.module
        if module is output or isinstance(module, nn.modules.batchnorm._BatchNorm) or dep.target.type in _OPERATIONS:
            continue
        makes = isinstance(module, nn.Linear | tp.ops.TORCH_CONV) and graph.is_out_channel_pruning_fn(dep.handler)
        if not makes:
            return False
    return True


def all_groups(graph: tp.DependencyGraph) -> list[Any]:
    """Every group of channels that would have to be cut together, in full; notes layers without one as ``graph.unread``."""
    # Torch-Pruning's own get_all_groups is a generator, which the first layer that it cannot follow ends for all others.
    groups, seen, unread = [], set[nn.Module](), list[nn.Module]()
    for module in list(graph.module2node):
        if not isinstance(module, tp.ops.TORCH_CONV | tp.ops.TORCH_LINEAR | nn.Embedding) or module in seen:
            continue
        pruner = graph.get_pruner_of_module(module)
        group = group_or_none(graph, module, pruner.prune_out_channels, range(pruner.get_out_channels(module)))
        if group is None:
            unread.append(module)
            continue
        groups.append(group)
        seen.update(dep.target.module for dep, _ in group if graph.is_out_channel_pruning_fn(dep.handler))
    graph.unread = tuple(unread)
    return groups


def group_or_none(graph: tp.DependencyGraph, module: Any, cut: Callable[..., Any], channels: Iterable[int]) -> Any:
    """A group that goes with some channels; None where Torch-Pruning cannot follow them."""
    try:
        return graph.get_pruning_group(module, cut, list(channels))
    except Exception:  # noqa: BLE001 (Torch-Pruning's own, of whatever it does not know)
        return None


def check_untied(graph: tp.DependencyGraph, model: nn.Module) -> None:
    """Raises where layers of the graph share a parameter, which a cut of one of them would part."""
    owners: dict[nn.Parameter, list[str]] = {}
    for prefix, module in model.named_modules():
        if module in graph.module2node:
            for name, parameter in module.named_parameters(prefix, recurse=False):
                owners.setdefault(parameter, []).append(name)
    tied = [names for names in owners.values() if len(names) > 1]
    if tied:
        raise UnsupportedModelError(
            f"layers that are cut must have parameters of their own; found tied ones: {tied}. Give each layer a copy "
            "(layer.weight = nn.Parameter(layer.weight.detach().clone())), or prune before tying them."
        )


def kept_whole(groups: Sequence[Any], ignored: Iterable[nn.Module]) -> list[nn.Module]:
    """Layers that make the channels of groups with an ignored member, one per group."""
    # Torch-Pruning leaves a group alone only if an ignored layer *makes* its channels; one that takes them is cut.
    inside = {module for layer in ignored for module in layer.modules()}
    return [group[0].dep.target.module for group in groups if any(item.dep.target.module in inside for item in group)]


def uncuttable(graph: tp.DependencyGraph, groups: Sequence[Any]) -> list[nn.Module]:
    """Layers whose output channels cannot be cut, one per group of layers that would have to be cut together."""
    return [*graph.unread, *(group[0].dep.target.module for group in groups if not _is_whole(graph, group))]


def _is_whole(graph: tp.DependencyGraph, group: Any) -> bool:
    """Returns whether a group of all outputs of a layer covers every layer in it in full, and no output of the model."""
    # Torch-Pruning does not follow channels through a grouped convolution that changes their number, or through places
    # that are folded into channels (Swin's merging): it would cut layers on either side that then do not fit.
    ends, projected = False, False
    for dep, idxs in group:
        node, module = dep.target, dep.target.module
        if isinstance(module, tp.ops._OutputOp):
            ends = True
        elif isinstance(module, nn.Parameter):
            # What is multiplied with a bare matrix at the end does not end there itself.
            projected |= module.ndim == 2 and node.pruning_dim == 0
        elif isinstance(module, tp.ops.TORCH_CONV) and module.groups not in {1, module.out_channels}:
            return False
        elif node.type not in _OPERATIONS:
            makes = graph.is_out_channel_pruning_fn(dep.handler)
            count = (graph.get_out_channels if makes else graph.get_in_channels)(module)
            if count is not None and len(set(idxs)) != count:
                return False
    return projected or not ends
