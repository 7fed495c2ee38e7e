"""Swapping a model's attention modules for :class:`PrunableAttention`, by module type."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from open_clip.transformer import Attention as OpenClipAttention
from torch import Tensor, nn

from ..errors import UnsupportedModelError
from ._attention import PrunableAttention

_Converter = Callable[[Any], nn.Module]
_ConverterT = TypeVar("_ConverterT", bound=_Converter)
_CONVERTERS: dict[type[nn.Module], _Converter] = {}


def register_attention(kind: type[nn.Module]) -> Callable[[_ConverterT], _ConverterT]:
    """Registers a converter from an attention module of exactly this type to a prunable one.

    Args:
        kind: The module type. A subclass of it needs a converter of its own.

    Returns:
        The decorator.

    Raises:
        ValueError: If the type has a converter already.
    """
    if kind in _CONVERTERS:
        raise ValueError(f"kind must be a type without a converter; {kind.__qualname__} has one already.")

    def register(converter: _ConverterT) -> _ConverterT:
        _CONVERTERS[kind] = converter
        return converter

    return register


def swap_attention(model: nn.Module) -> int:
    """Mutates ``model``: every registered attention module becomes prunable, with the same weights and outputs.

    All modules are converted before the first is exchanged, so a module that cannot be converted leaves the model as it was.

    Args:
        model: Any module; modules that are prunable already are left alone.

    Returns:
        How many modules were exchanged.
    """
    converted = [
        (name, _CONVERTERS[type(module)](module))
        for name, module in model.named_modules()
        if type(module) in _CONVERTERS
    ]
    for name, module in converted:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, module)
    return len(converted)


def _fill(attention: PrunableAttention, original: Any, projections: dict[str, tuple[Tensor, Tensor | None]]) -> None:
    """Gives ``attention`` the weights, dtype, device, training mode and requires_grad of ``original``."""
    for name, (weight, bias) in projections.items():
        linear = getattr(attention, f"{name}_proj")
        linear.weight = nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)
        if bias is not None:
            linear.bias = nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)
    attention.out_proj = original.out_proj
    attention.train(original.training)


def _chunked(fused: Tensor, pieces: int = 3) -> list[Tensor]:
    return [part.detach().requires_grad_(fused.requires_grad) for part in fused.chunk(pieces)]


@register_attention(nn.MultiheadAttention)
def _from_torch(module: nn.MultiheadAttention) -> PrunableAttention:
    if module.bias_k is not None or module.add_zero_attn:
        raise UnsupportedModelError(
            "nn.MultiheadAttention with add_bias_kv or add_zero_attn cannot be pruned; register a converter for a "
            "subclass of it with torch_pruning_mope.register_attention."
        )
    with torch.device("meta"):  # every weight is replaced below
        attention = PrunableAttention(
            module.embed_dim,
            module.kdim or module.embed_dim,
            module.embed_dim,
            module.embed_dim,
            module.num_heads,
            bias=module.in_proj_bias is not None,
            out_bias=module.out_proj.bias is not None,
            dropout=module.dropout,
            batch_first=module.batch_first,
        )
    fused: Tensor | None = module.in_proj_weight  # None where keys or values have a width of their own
    separate: list[Any] = [module.q_proj_weight, module.k_proj_weight, module.v_proj_weight]
    weights = separate if fused is None else _chunked(fused)
    biases = [None] * 3 if module.in_proj_bias is None else _chunked(module.in_proj_bias)
    _fill(attention, module, dict(zip("qkv", zip(weights, biases, strict=True), strict=True)))
    return attention


class _SelfAttention(PrunableAttention):
    """Stands in for open_clip's own ``Attention``, which returns its output alone and may be called with queries alone."""

    def forward(  # type: ignore[override]
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        attn_mask: Tensor | None = None,
    ) -> Tensor:
        """Attention over ``[N, T, D]``; masks as in :class:`PrunableAttention`.

        Returns:
            The output, ``[N, T, D]``.
        """
        key = query if key is None else key
        return super().forward(query, key, key if value is None else value, attn_mask=attn_mask)[0]


@register_attention(OpenClipAttention)
def _from_open_clip(module: Any) -> _SelfAttention:
    extras = {
        "qk_norm": not isinstance(module.ln_q, nn.Identity),
        "scaled_cosine": module.logit_scale is not None,
        "scale_heads": module.head_scale is not None,
        "inner_norm": not isinstance(module.ln_inner, nn.Identity),
        "proj_drop": module.out_drop.p > 0,
    }
    if any(extras.values()):
        raise UnsupportedModelError(
            f"open_clip Attention must be plain to be pruned; found {[name for name, on in extras.items() if on]}. "
            "These options are not supported yet."
        )
    width = module.in_proj_weight.shape[1]
    with torch.device("meta"):
        attention = _SelfAttention(
            width,
            width,
            width,
            width,
            module.num_heads,
            bias=module.in_proj_bias is not None,
            dropout=module.attn_drop.p,
        )
    weights = _chunked(module.in_proj_weight)
    biases = [None] * 3 if module.in_proj_bias is None else _chunked(module.in_proj_bias)
    _fill(attention, module, dict(zip("qkv", zip(weights, biases, strict=True), strict=True)))
    return attention
