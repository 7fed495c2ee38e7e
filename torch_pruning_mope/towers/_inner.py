"""Neurons of layers of unknown types: channels that stay inside one layer, from the dependency graph."""

from collections.abc import Iterator, Sequence, Set
from typing import Any

import torch_pruning as tp
from torch import nn

from ..surgery import Parts
from ._discover import element_of
from ._look import common_owner

_MAKES = {tp.prune_linear_out_channels, tp.prune_conv_out_channels, tp.prune_depthwise_conv_out_channels}
_LAYERS = (nn.Linear, *tp.ops.TORCH_CONV) if isinstance(tp.ops.TORCH_CONV, tuple) else (nn.Linear, tp.ops.TORCH_CONV)


def inner_neurons(
    root: nn.Module, own: Set[nn.Module], groups: Sequence[Any], firm: Set[nn.Module], covered: Set[nn.Module]
) -> Iterator[tuple[str, Parts]]:
    """Groups of channels that one layer of an encoder makes and takes itself."""
    modules = dict(root.named_modules())
    names = {module: name for name, module in modules.items() if module in own}
    for group in groups:
        around = _around(group, names, firm, covered)
        if around is None:
            continue
        makers, takers = around
        paths = [names[module].split(".")[:-1] for module in (*makers, *takers)]
        owner = common_owner(paths)
        alone = len(takers) == 1 and len(makers) <= 2 and not _holds_layers(owner, modules)
        if element_of(owner, modules) or (alone and owner):
            # Where several take them, the widest is the layer's last: a squeeze-and-excitation takes them besides.
            output = max(takers, key=lambda module: module.weight.shape[0])
            yield owner, Parts("neurons", tuple(makers), output, 1)


def _holds_layers(name: str, modules: dict[str, nn.Module]) -> bool:
    """Returns whether a module holds a list of layers."""
    prefix = f"{name}." if name else ""
    return any(element_of(each, modules) == each for each in modules if each.startswith(prefix) and each != name)


def _around(
    group: Any, names: dict[nn.Module, str], firm: Set[nn.Module], covered: Set[nn.Module]
) -> tuple[list[Any], list[Any]] | None:
    """Layers that make and take the channels of a group, if it is whole and inside an encoder."""
    makers: list[Any] = []
    takers: list[Any] = []
    for dep, _ in group:
        module = dep.target.module
        if isinstance(module, nn.Parameter | nn.Embedding | tp.ops._OutputOp):
            return None
        if isinstance(module, _LAYERS):
            makes = dep.handler in _MAKES
            if module not in names or (makes and (module in firm or module in covered)):
                return None
            (makers if makes else takers).append(module)
    makers, takers = list(dict.fromkeys(makers)), list(dict.fromkeys(takers))
    takers = [taker for taker in takers if taker not in makers]  # depthwise convolutions do both
    if not makers or not takers or not all(isinstance(taker, nn.Linear | nn.Conv2d) for taker in takers):
        return None
    count = makers[0].weight.shape[0]
    fits = all(maker.weight.shape[0] == count for maker in makers)
    fits &= all(taker.weight.shape[1] == count for taker in takers)
    return (makers, takers) if fits else None
