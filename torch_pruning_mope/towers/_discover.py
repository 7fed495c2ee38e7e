"""Finding what can be removed of an encoder, by the types of its modules."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from .._registry import Registry, TypeKey
from ..surgery import PrunableAttention, parts_of
from ._prunable import Channels, Prunable

Found = Sequence[tuple[Literal["head", "neurons"], Prunable]]
_UNITS: Registry[Callable[[Any], Found]] = Registry("a handler of their units")


def register_channels(*kinds: TypeKey) -> Callable[..., Any]:
    """Registers what can be removed of modules of exactly these types.

    The handler takes a module and returns pairs of ``"head"`` or ``"neurons"`` and a
    :class:`torch_pruning_mope.towers.Channels`, in the order in which they run.

    Args:
        *kinds: Module types, or their full names (``"timm.layers.mlp.Mlp"``), which spares importing them.

    Returns:
        The decorator.

    Raises:
        ValueError: If one of the types has a handler already.
    """
    return _UNITS.register(*kinds)


@dataclass
class FoundLayer:
    """A module of an encoder and what can be removed of it.

    Attributes:
        module: The module: an element of a list of layers, or one that stands by itself (an attention pool).
        siblings: The list that it is an element of, or None.
        found: What can be removed of it.
    """

    module: nn.Module
    siblings: nn.ModuleList | nn.Sequential | None
    found: list[tuple[Literal["head", "neurons"], Prunable]] = field(default_factory=list)


def discover(root: nn.Module) -> list[FoundLayer]:
    """The layers of an encoder whose attention has been swapped."""
    modules = dict(root.named_modules())
    handlers = {kind: _UNITS.get(kind) for kind in {type(module) for module in modules.values()}}
    units: dict[str, Found] = {}
    hidden: list[str] = []
    for name, module in modules.items():
        if any(name.startswith(prefix) for prefix in hidden):
            continue
        if isinstance(module, PrunableAttention):
            units[name] = [("head", Channels(module.makers(), module.out_proj, module.head_dim))]
            hidden += [f"{name}.{part}." for part in module.unlisted]
        elif (handler := handlers[type(module)]) is not None:
            units[name] = handler(module)
        elif parts := parts_of(module):
            units[name] = [
                (part.kind, Channels(part.sources, part.output, part.unit_size, can_be_empty=False)) for part in parts
            ]
    inside: dict[str, str] = {}
    for name in units:  # what lies inside a module that has a handler belongs to the same layer
        around = next((outer for outer in inside if name.startswith(f"{outer}.")), None)
        inside[name] = element_of(name, modules) if around is None else inside[around]
    lists = {element for element in inside.values() if element}
    layers: dict[str, FoundLayer] = {}
    for name, found in units.items():
        element = inside[name]
        owner = element or _alone(name, lists)
        if owner not in layers:
            siblings: Any = modules[element.rpartition(".")[0]] if element else None
            layers[owner] = FoundLayer(modules[owner], siblings)
        layers[owner].found.extend(found)
    return list(layers.values())


def element_of(name: str, modules: dict[str, nn.Module]) -> str:
    """The nearest module around (or at) ``name`` that is an element of a list of layers; empty if there is none."""
    while name:
        parent = name.rpartition(".")[0]
        # A list of layers holds modules with parts; the layers of an MLP stand in a Sequential as well.
        if isinstance(modules[parent], nn.ModuleList | nn.Sequential) and any(modules[name].children()):
            return name
        name = parent
    return ""


def _alone(name: str, lists: set[str]) -> str:
    """The outermost module around ``name`` that holds no list of layers."""
    best = name
    while name := name.rpartition(".")[0]:
        if any(element.startswith(f"{name}.") for element in lists):
            break
        best = name
    return best
