"""The arguments of a Torch-Pruning pruner for a dual encoder."""

from collections.abc import Sequence
from typing import Any

import torch
import torch_pruning as tp
from torch import nn

from ..encoder import EncoderCore, TowerName
from ..surgery import customized_pruners, kept_whole, scalars
from ._request import PruningRequest, Ratios, note_round_to


class PrunerMixin(EncoderCore):
    """The part of a dual encoder that Torch-Pruning's pruners are built from."""

    def request(self, *, towers: Sequence[TowerName] = ("image", "text"), **ratios: Any) -> PruningRequest:
        """The arguments of :meth:`pruner_arguments`, checked, in ratios and in counts; raises TypeError or ValueError."""
        if not towers or set(towers) - self.towers.keys():
            raise ValueError(f"towers must name some of {', '.join(self.towers)}; found {tuple(towers)!r}.")
        layers = [layer for layer in self.layers if layer.tower in towers]
        request = PruningRequest(layers, {name: self.towers[name].streams for name in towers}, **ratios)
        if foreign := request.modules - set(self.model.modules()):
            raise ValueError(
                "ignored_layers and pruning_ratio_dict must hold modules of encoder.model as it is now; found "
                f"{', '.join(sorted(type(module).__name__ for module in foreign))} from elsewhere. Wrapping has replaced "
                "attention modules: take them from encoder.model."
            )
        return request

    def pruner_arguments(
        self,
        *,
        head_ratio: float = 0.0,
        ffn_ratio: float = 0.0,
        width_ratio: float = 0.0,
        global_pruning: bool = False,
        iterative_steps: int = 1,
        round_to: int | None = None,
        towers: Sequence[TowerName] = ("image", "text"),
        ignored_layers: Sequence[nn.Module] = (),
        pruning_ratio_dict: Ratios | None = None,
    ) -> dict[str, Any]:
        """Everything a ``tp.pruner.MetaPruner`` needs besides the model and the importance, fresh on every call.

        Change them by the arguments below. A ratio put in the place of ours is refused when the pruner is built;
        ``global_pruning``, ``iterative_steps`` and ``max_pruning_ratio`` may be replaced. Without our ``num_heads``,
        ``prune_head_dims=False``, ``customized_pruners``, ``unwrapped_parameters`` or ``forward_fn`` Torch-Pruning damages the
        model. The arguments are for this model as it is now: after a cut by anything else, call again.

        Frozen parameters are traced and pruned like others; those that Torch-Pruning cuts come back with ``requires_grad``
        on, which :func:`torch_pruning_mope.prune` undoes and a pruner of your own does not.

        Heads, FFN neurons and residual channels are ranked in scopes of their own. Each ratio removes the ceiling of its
        share: per layer, or with ``global_pruning`` over all layers of the named towers (the residual width always per
        tower).

        Args:
            head_ratio: Share of attention heads to remove, in [0, 1).
            ffn_ratio: Share of FFN neurons to remove, in [0, 1).
            width_ratio: Share of the residual width to remove, in [0, 1). MoPE does not score it: give the importance a
                fallback.
            global_pruning: Rank over all layers, so that layers keep different widths, instead of within each.
            iterative_steps: ``pruner.step()`` calls over which the removal is spread.
            round_to: Round what is left of neurons and residual channels down to a multiple of this.
            towers: Towers that the ratios are for.
            ignored_layers: Modules that Torch-Pruning must leave alone; the ratios do not count them. Channels that one of
                them makes or takes stay whole, so that neither side is cut.
            pruning_ratio_dict: Ratios of their own for some modules, as in Torch-Pruning; the others do not count them.

        Returns:
            Keyword arguments for ``tp.pruner.MetaPruner``.

        Raises:
            TypeError: If something is of another type.
            ValueError: If a ratio is outside [0, 1) or would empty a layer, or a module is not of the model.
            RuntimeError: If autograd is off.
            UngroupedParametersError: If a parameter is in no group and not knowingly left alone.
        """
        request = self.request(
            head_ratio=head_ratio,
            ffn_ratio=ffn_ratio,
            width_ratio=width_ratio,
            global_pruning=global_pruning,
            iterative_steps=iterative_steps,
            round_to=round_to,
            towers=towers,
            ignored_layers=ignored_layers,
            pruning_ratio_dict=pruning_ratio_dict or {},
        )
        if not torch.is_grad_enabled() or torch.is_inference_mode_enabled():
            raise RuntimeError(
                "pruner_arguments must be called with autograd on, because Torch-Pruning traces the model through it; found "
                "torch.no_grad or inference_mode. Build the pruner outside of it."
            )
        graph, groups = self.checked_graph()
        whole = kept_whole(groups, request.ignored_layers)
        firm = [*self.uncuttable(graph, groups), *whole]
        self._check_widths(graph, firm, request)
        self._check_between(whole, request)
        asked = request.arguments()
        pruners, traced = customized_pruners(self.model), self.graph_arguments()
        note_round_to(pruners, round_to)
        return {
            **asked,
            "ignored_layers": [*asked["ignored_layers"], *firm, *scalars(traced["unwrapped_parameters"])],
            **traced,
            "customized_pruners": pruners,
        }

    def _check_widths(self, graph: tp.DependencyGraph, firm: Sequence[nn.Module], request: PruningRequest) -> None:
        """Raises if a residual width is to be cut that cannot."""
        names = {module: name for name, module in self.model.named_modules()}
        bad = (
            [output for output, _ in request.widths if output in firm or _group_of(graph, output) & set(firm)]
            if request.width_ratio
            else []
        )
        if bad:
            raise ValueError(
                f"width_ratio must be 0 for towers whose residual width cannot be cut; found {request.width_ratio}, and the "
                f"widths at {[names[output] for output in bad]} are the joint embedding, or reach layers that are ignored or "
                "that Torch-Pruning cannot follow channels through. Give towers that can, or ratios of some layers in "
                "pruning_ratio_dict."
            )

    def _check_between(self, whole: Sequence[nn.Module], request: PruningRequest) -> None:
        """Raises if something is ignored that lies between the layers around some units, whose ratio then fails."""
        counted = [*request.attentions, *request.feed_forwards]
        held = {source for units in counted for source in units.sources} & set(whole)
        if held:
            names = sorted(name for name, module in self.model.named_modules() if module in held)
            raise ValueError(
                "ignored_layers must hold the layers that make or take channels, not what lies between them; the channels of "
                f"{names} would stay whole. Ignore these too."
            )


def _group_of(graph: tp.DependencyGraph, output: nn.Module) -> set[Any]:
    """The layers that make the same channels as ``output``."""
    makes = graph.get_pruner_of_module(output).prune_out_channels
    group = graph.get_pruning_group(output, makes, [0])
    return {dep.target.module for dep, _ in group if graph.is_out_channel_pruning_fn(dep.handler)}
