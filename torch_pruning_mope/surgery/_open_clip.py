"""Attention of open_clip."""

from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UnsupportedModelError
from ._attention import PrunableAttention
from ._swap import build, fused, in_projections, register_attention


class _SelfAttention(PrunableAttention):
    """Stands in for open_clip's own ``Attention``, which returns its output alone and may be called with queries alone."""

    out_drop: nn.Module

    def forward(  # type: ignore[override]
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        attn_mask: Tensor | None = None,
    ) -> Tensor:
        """Attention over ``[N, T, D]``; masks as in :class:`PrunableAttention`."""
        key = query if key is None else key
        out = super().forward(query, key, key if value is None else value, attn_mask=attn_mask)[0]
        dropped: Tensor = self.out_drop(out)
        return dropped


class _CrossAttention(_SelfAttention):
    """Stands in for the ``Attention`` of open_clip 4, which takes keys and values as ``k_x`` and ``v_x``."""

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        k_x: Tensor | None = None,
        v_x: Tensor | None = None,
        attn_mask: Tensor | None = None,
    ) -> Tensor:
        """Attention over ``[N, T, D]``; a boolean mask is True where attention is *allowed*."""
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = ~attn_mask
        return super().forward(x, k_x, x if v_x is None else v_x, attn_mask)


@register_attention("open_clip.transformer.Attention")
def _from_open_clip(module: Any) -> _SelfAttention:
    per_head = module.head_scale is not None or module.logit_scale is not None
    attention = build(
        _CrossAttention if "k_x" in signature(module.forward).parameters else _SelfAttention,
        module,
        in_projections(module),
        module.out_proj,
        module.num_heads,
        dropout=module.attn_drop.p,
        tracks_heads=per_head,
    )
    attention.q_norm, attention.k_norm, attention.norm = module.ln_q, module.ln_k, module.ln_inner
    attention.head_scale, attention.query_scale = module.head_scale, module.logit_scale
    if module.logit_scale is not None:
        attention.scale, attention.query_scale_max = 1.0, module.logit_scale_max
    attention.out_drop = module.out_drop
    return attention


class _TextAttention(PrunableAttention):
    """Stands in for ``ModernTextAttention`` of open_clip 4."""

    @property
    def qkv(self) -> nn.Linear:
        """A projection, of which the layer around reads the type of the weights."""
        return self.v_proj

    def rotated(self, x: Tensor, rope: Tensor | None) -> Tensor:
        """Queries or keys with their positions turned in, where there are any: each two channels by one angle."""
        if rope is None:
            return x
        cos, sin = (part[..., None] for part in rope.chunk(2, -1))
        pairs = x.unflatten(-1, (-1, 2))
        turned = torch.stack((-pairs[..., 1], pairs[..., 0]), -1)
        rotated: Tensor = (pairs * cos + turned * sin).flatten(-2)
        return rotated

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        rope_embed: Tensor | None = None,
        key_bias: Tensor | None = None,
        is_causal: bool = False,
        v_first: None = None,
    ) -> tuple[Tensor, None]:
        """Self-attention over ``[N, T, D]``."""
        out: Tensor = self.out_proj(self.heads(x, x, x, key_bias, causal=is_causal, rope=rope_embed))
        return out, v_first


@register_attention("open_clip.transformer.ModernTextAttention")
def _from_modern_text(module: Any) -> _TextAttention:
    if module.value_residual:
        raise UnsupportedModelError(
            "attention must have values of its own to be pruned by heads; found value_residual, which mixes every layer's "
            "heads with the first layer's. Its neurons can be pruned."
        )
    attention = build(_TextAttention, module, fused(module.qkv.weight, module.qkv.bias), module.proj, module.heads)
    attention.q_norm, attention.k_norm, attention.gate = module.q_norm, module.k_norm, module.gate
    return attention


class _MeanQueryPool(PrunableAttention):
    """Stands in for ``AttentionPool2d`` of open_clip's ResNets, which keeps the mean token alone."""

    positional_embedding: nn.Parameter

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """Pools a map."""
        tokens = x.flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], 1) + self.positional_embedding.to(x.dtype)
        pooled: Tensor = self.out_proj(self.heads(tokens[:, :1], tokens, tokens))
        return pooled[:, 0]


@register_attention("open_clip.modified_resnet.AttentionPool2d")
def _from_resnet(module: Any) -> _MeanQueryPool:
    projections = {
        name: (getattr(module, f"{name}_proj").weight, getattr(module, f"{name}_proj").bias) for name in "qkv"
    }
    attention = build(_MeanQueryPool, module, projections, module.c_proj, module.num_heads)
    attention.positional_embedding = module.positional_embedding
    return attention
