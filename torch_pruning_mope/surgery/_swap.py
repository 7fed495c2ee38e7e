"""Swapping a model's attention modules for :class:`PrunableAttention`, by module type."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .._registry import Registry
from ..errors import UnsupportedModelError
from ._attention import PrunableAttention

_AttentionT = TypeVar("_AttentionT", bound=PrunableAttention)
_Projection = tuple[Tensor, Tensor | None]
"""Weight and bias."""
CONVERTERS: Registry[Callable[[Any], nn.Module]] = Registry("a converter of its attention")


def register_attention(*kinds: type[nn.Module] | str) -> Callable[..., Any]:
    """Registers a converter from an attention module of exactly these types to a prunable one.

    Args:
        *kinds: Module types, or their full names, which spares importing them. A subclass needs a converter of its own.

    Returns:
        The decorator.

    Raises:
        ValueError: If one of the types has a converter already.
    """
    return CONVERTERS.register(*kinds)


def swap_attention(model: nn.Module) -> int:
    """Mutates ``model``: every registered attention module becomes prunable, with the same weights and outputs."""
    # Modules that cannot be converted are left as they are.
    return len(exchange(model, prunable_attention(model)[0]))


def prunable_attention(model: nn.Module) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """Stand-ins for the registered modules of a model, by name, and why others cannot be swapped."""
    swapped: dict[str, nn.Module] = {}
    problems: dict[str, str] = {}
    for name, module in model.named_modules():
        converter = CONVERTERS.get(type(module))
        if converter is None:
            continue
        try:
            changed = converter(module)
        except UnsupportedModelError as error:
            problems[name] = str(error)
        else:
            if changed is not module:
                swapped[name] = changed
    return swapped, problems


def exchange(model: nn.Module, modules: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """Mutates ``model``: puts modules in the place of others."""
    before = {name: model.get_submodule(name) for name in modules}
    for name, module in modules.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, module)
    return before


def build(
    kind: type[_AttentionT],
    original: Any,
    projections: dict[str, _Projection],
    out: nn.Linear,
    num_heads: int,
    *,
    dropout: float = 0.0,
    batch_first: bool = True,
    tracks_heads: bool = False,
) -> _AttentionT:
    """A prunable attention with the weights, dtype, device, training mode and requires_grad of the original."""
    inner_dim, query_dim = projections["q"][0].shape
    with torch.device("meta"):  # every weight is replaced below
        attention = kind(
            query_dim,
            projections["k"][0].shape[1],
            inner_dim,
            out.out_features,
            num_heads,
            dropout=dropout,
            batch_first=batch_first,
            tracks_heads=tracks_heads,
        )
    for name, (weight, bias) in projections.items():
        linear = getattr(attention, f"{name}_proj")
        linear.weight = nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)
        linear.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)
    if tracks_heads:
        attention.v_proj.to(out.weight.device)
    attention.out_proj = out
    attention.train(original.training)
    return attention


def fused(weight: Tensor, bias: Tensor | None, letters: str = "qkv") -> dict[str, _Projection]:
    """The projections of a fused one."""
    weights, biases = chunked(weight, len(letters)), [None] * len(letters)
    both = zip(weights, biases if bias is None else chunked(bias, len(letters)), strict=True)
    return dict(zip(letters, both, strict=True))


def in_projections(module: Any) -> dict[str, Any]:
    """Weight and bias of q, k and v of ``nn.MultiheadAttention`` and its like, fused or (keys of another width) separate."""
    if module.in_proj_weight is not None:
        return fused(module.in_proj_weight, module.in_proj_bias)
    separate = [module.q_proj_weight, module.k_proj_weight, module.v_proj_weight]
    biases = [None] * 3 if module.in_proj_bias is None else chunked(module.in_proj_bias, 3)
    return dict(zip("qkv", zip(separate, biases, strict=True), strict=True))


def chunked(tensor: Tensor, pieces: int) -> list[Tensor]:
    """Equal pieces of a parameter, which require gradients if it does."""
    return [part.detach().requires_grad_(tensor.requires_grad) for part in tensor.chunk(pieces)]
