"""Torch-Pruning's dependency graph of a dual encoder, with what makes it right for one.

Torch-Pruning 1.6.1 is used unmodified; every correction travels in the arguments of its own constructors.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch_pruning.pruner import function

from .._state import trainable
from ..errors import UngroupedParametersError
from ._attention import HeadProjection, tracing
from ._record import recording_pruners

UnwrappedParameters = list[tuple[nn.Parameter, int]]


_OPERATIONS = {
    getattr(tp.ops.OPTYPE, name) for name in ("ELEMENTWISE", "RESHAPE", "CONCAT", "SPLIT", "UNBIND", "EXPAND", "SLICE")
}
"""Nodes of the graph that hold no parameters."""


class _SortedLayerNormPruner(function.LayernormPruner):  # type: ignore[misc]
    """LayerNorm surgery that keeps channels in order.

    Torch-Pruning drops the result of ``keep_idxs.sort()``, so at large cuts the order of a Python set decides and weights
    end up permuted (trap G).
    """

    def prune_out_channels(self, layer: nn.LayerNorm, idxs: Sequence[int]) -> nn.LayerNorm:
        """Mutates ``layer``: removes the channels ``idxs``.

        Args:
            layer: A LayerNorm over its last dimension.
            idxs: Channels to remove.

        Returns:
            The layer.
        """
        gone = set(idxs)
        keep = [index for index in range(layer.normalized_shape[-1]) if index not in gone]
        layer.normalized_shape = (*layer.normalized_shape[:-1], len(keep))
        if layer.elementwise_affine:
            layer.weight = self._prune_parameter_and_grad(layer.weight, keep, -1)
            if layer.bias is not None:
                layer.bias = self._prune_parameter_and_grad(layer.bias, keep, -1)
        return layer

    prune_in_channels = prune_out_channels


class _HeadProjectionPruner(function.LinearPruner):  # type: ignore[misc]
    """Surgery on a value projection that remembers which heads are left."""

    def prune_out_channels(self, layer: HeadProjection, idxs: Sequence[int]) -> HeadProjection:
        """Mutates ``layer``: removes the channels ``idxs``, of whole heads.

        Args:
            layer: The projection.
            idxs: Channels to remove.

        Returns:
            The layer.
        """
        gone = set(idxs)
        layer.keep([channel for channel in range(layer.out_features) if channel not in gone])
        super().prune_out_channels(layer, list(idxs))
        return layer


class _UnboundedOutputPruner(tp.ops.OutputPruner):  # type: ignore[misc]
    """Graph outputs that claim no size.

    Torch-Pruning takes dimension 1 of an output for the channels of whatever group reaches it, and silently drops groups
    of as many channels or more: cuts of the residual width by more than the joint embedding (trap C).
    """

    def prune_out_channels(self, layer: nn.Module, idxs: Sequence[int]) -> nn.Module:  # noqa: ARG002
        """Nothing to prune in an output.

        Args:
            layer: The output node.
            idxs: Ignored.

        Returns:
            The node.
        """
        return layer

    prune_in_channels = prune_out_channels

    def get_in_channels(self, layer: nn.Module) -> None:
        """No size."""

    get_out_channels = get_in_channels


def customized_pruners(model: nn.Module) -> dict[type[nn.Module], Any]:
    """Fresh pruners for the layer types whose own pruner in Torch-Pruning is wrong here, or takes no notes.

    Args:
        model: The model, for the LayerNorm subclasses in it (Torch-Pruning looks up the exact class, trap N).

    Returns:
        What ``customized_pruners`` of a Torch-Pruning constructor takes.
    """
    norms = {type(module) for module in model.modules() if isinstance(module, nn.LayerNorm)}
    pruners: dict[type[nn.Module], Any] = recording_pruners(model)
    pruners |= dict.fromkeys(norms, _SortedLayerNormPruner())
    pruners[tp.ops._OutputOp] = _UnboundedOutputPruner()
    pruners[HeadProjection] = _HeadProjectionPruner()
    return pruners


def tracing_forward(
    encode_image: Callable[[Tensor], Tensor],
    encode_text: Callable[[Tensor], Tensor],
    model: nn.Module,
    decode: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Callable[[nn.Module, dict[str, Tensor]], list[Tensor]]:
    """A ``forward_fn`` that keeps the towers apart and the model as it was.

    It returns the two features rather than logits, which would couple the towers (trap L); it turns gradients on for the
    trace, because frozen parameters vanish from the graph (trap M); it gives back the training modes that the model has
    *now*, because Torch-Pruning has already left it in eval mode when the function runs (trap V); and if the model fails, it
    takes off the hooks that Torch-Pruning would leave behind.

    Args:
        encode_image: The model's image encoder.
        encode_text: The model's text encoder.
        model: The model.
        decode: What makes use of both besides, such as CoCa's decoder, or None.

    Returns:
        The function.
    """
    flags = {module: module.training for module in model.modules()}

    def forward(traced: nn.Module, inputs: dict[str, Tensor]) -> list[Tensor]:
        try:
            with trainable(traced), tracing():
                outputs = [encode_image(inputs["images"]), encode_text(inputs["tokens"])]
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


def build_graph(
    model: nn.Module,
    example_inputs: dict[str, Tensor],
    forward_fn: Callable[[nn.Module, dict[str, Tensor]], list[Tensor]],
    unwrapped_parameters: UnwrappedParameters,
) -> tp.DependencyGraph:
    """The dependency graph, corrected.

    Args:
        model: The swapped model.
        example_inputs: ``images`` and ``tokens``.
        forward_fn: From :func:`tracing_forward`.
        unwrapped_parameters: Bare parameters and their residual dimension.

    Returns:
        The graph.
    """
    with torch.inference_mode(False), torch.enable_grad():
        return tp.DependencyGraph().build_dependency(
            model,
            example_inputs=example_inputs,
            forward_fn=forward_fn,
            unwrapped_parameters=list(unwrapped_parameters),
            customized_pruners=customized_pruners(model),
        )


def masking_is_removal(graph: tp.DependencyGraph, output: nn.Module) -> bool:
    """Whether zeroing input channels of a layer is what removing them from the model would do, for any of them.

    It is, unless a norm over the channels stands before that layer, which would then be over fewer, or another layer or a
    bare parameter has to do with them too. Batch normalisation and depthwise convolutions keep channels apart.

    Args:
        graph: The graph of the model.
        output: The layer.

    Returns:
        Whether it is.
    """
    pruner = graph.get_pruner_of_module(output)
    channels = list(range(pruner.get_in_channels(output)))
    for dep, _ in graph.get_pruning_group(output, pruner.prune_in_channels, channels):
        module = dep.target.module
        if module is output or isinstance(module, nn.modules.batchnorm._BatchNorm) or dep.target.type in _OPERATIONS:
            continue
        makes = isinstance(module, nn.Linear | tp.ops.TORCH_CONV) and graph.is_out_channel_pruning_fn(dep.handler)
        if not makes:
            return False
    return True


def all_groups(graph: tp.DependencyGraph) -> list[Any]:
    """Every group of channels that would have to be cut together, in full.

    Args:
        graph: The graph.

    Returns:
        The groups, found by the layers that make their channels.
    """
    return list(graph.get_all_groups(root_module_types=[tp.ops.TORCH_CONV, tp.ops.TORCH_LINEAR, nn.Embedding]))


def uncuttable(graph: tp.DependencyGraph, groups: Sequence[Any]) -> list[nn.Module]:
    """Layers whose output channels cannot be cut, one per group of layers that would have to be cut together.

    Args:
        graph: The graph.
        groups: All its groups.

    Returns:
        The layers; given to a pruner as ``ignored_layers``, they spare criteria groups that they cannot score either.
    """
    return [group[0].dep.target.module for group in groups if not _is_whole(graph, group)]


def _is_whole(graph: tp.DependencyGraph, group: Any) -> bool:
    """Whether a group of all output channels of a layer covers every layer in it in full, and no output of the model.

    Torch-Pruning does not follow channels through a grouped convolution that changes their number, or through places that
    are folded into channels (Swin's merging): it would cut layers on either side that then do not fit.

    Args:
        graph: The graph.
        group: A group of all channels of its root.

    Returns:
        Whether it does.
    """
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


def check_grouped(
    graph: tp.DependencyGraph,
    groups: Sequence[Any],
    model: nn.Module,
    joint: Sequence[nn.Parameter],
    left_alone: Sequence[nn.Parameter],
    outputs: Callable[[], Sequence[Tensor]] = lambda: (),
) -> None:
    """Every parameter that the outputs depend on is in a pruning group, or knowingly left alone.

    Args:
        graph: The graph of ``model``.
        groups: All its groups.
        model: The model.
        joint: Bare parameters that the graph was told of. Of others it has guessed which dimension goes with the groups.
        left_alone: Parameters that no pruning touches (temperature, say).
        outputs: Computes what the model puts out, with gradients; asked only if some parameters are in no group.

    Raises:
        UngroupedParametersError: With all parameters that are neither.
    """
    known = set(left_alone)
    own = [  # a pool's learnt queries, say, which no layer makes
        graph.get_pruning_group(parameter, tp.prune_parameter_out_channels, [0])
        for parameter in joint
        if parameter in graph.module2node
    ]
    for group in [*groups, *own]:
        for dep, _ in group:
            target = dep.target.module
            known.update([target] if isinstance(target, nn.Parameter) else target.parameters())
    known -= {parameter for parameter, _ in graph.unwrapped_parameters} - set(joint) - set(left_alone)
    missed = {parameter: name for name, parameter in model.named_parameters() if parameter not in known}
    if missed:
        used = _reached(outputs())
        missed = {parameter: name for parameter, name in missed.items() if parameter in used}
    if missed:
        raise UngroupedParametersError(
            f"every parameter must be in a pruning group or knowingly left alone; found neither for {list(missed.values())}. "
            "If the model computes with them outside its layers, name them in the tower's joint_parameters."
        )


def reached_leaves(model: nn.Module, outputs: Callable[[], Sequence[Tensor]]) -> set[nn.Parameter]:
    """The parameters that some outputs depend on.

    Args:
        model: The model; left as it is.
        outputs: Computes them.

    Returns:
        The parameters.
    """
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
