"""Attention of timm."""

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..errors import UnsupportedModelError
from ._attention import PrunableAttention
from ._swap import build, fused, register_attention

_AttentionT = TypeVar("_AttentionT", bound=PrunableAttention)


class _SelfAttention(PrunableAttention):
    """Stands in for ``Attention``, ``AttentionRope`` and ``EvaAttention``."""

    proj_drop: nn.Module
    prefix_tokens = 0
    rotate_half = False

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        rope: Tensor | None = None,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """Self-attention."""
        out: Tensor = self.proj_drop(self.out_proj(self.heads(x, x, x, attn_mask, causal=is_causal, rope=rope)))
        return out

    def rotated(self, x: Tensor, rope: Tensor | None) -> Tensor:
        """Queries or keys with their positions turned in, where there are any."""
        if rope is None:
            return x
        from timm.layers.pos_embed_sincos import apply_rot_embed_cat  # loaded: the attention was timm's

        prefix, rest = x[:, :, : self.prefix_tokens], x[:, :, self.prefix_tokens :]
        return torch.cat([prefix, apply_rot_embed_cat(rest, rope, half=self.rotate_half)], 2)


def _build(kind: type[_AttentionT], module: Any, projections: Any, *, tracks_heads: bool = False) -> _AttentionT:
    """Builds what timm's attentions have in common."""
    attention = build(
        kind,
        module,
        projections,
        module.proj,
        module.num_heads,
        dropout=module.attn_drop.p,
        tracks_heads=tracks_heads,
    )
    attention.proj_drop = module.proj_drop
    return attention


def _of_self_attention(module: Any, projections: Any) -> _SelfAttention:
    attention = _build(_SelfAttention, module, projections)
    attention.scale = module.scale
    attention.q_norm, attention.k_norm = module.q_norm, module.k_norm
    attention.norm = getattr(module, "norm", attention.norm)
    attention.gate = getattr(module, "gate", None)
    attention.prefix_tokens = getattr(module, "num_prefix_tokens", 0)
    attention.rotate_half = getattr(module, "rotate_half", False)
    return attention


@register_attention("timm.layers.attention.Attention", "timm.layers.attention.AttentionRope")
def _from_attention(module: Any) -> _SelfAttention:
    if getattr(module, "num_kv_groups", 1) > 1:
        raise UnsupportedModelError(
            f"attention must have as many key as query heads to be pruned by heads; found {module.num_kv_heads} for "
            f"{module.num_heads}. Register a converter for a subclass of {type(module).__qualname__} with "
            "torch_pruning_mope.register_attention."
        )
    return _of_self_attention(module, _projections(module))


@register_attention("timm.models.eva.EvaAttention")
def _from_eva(module: Any) -> _SelfAttention:
    projections = _projections(module)
    if module.q_bias is not None:  # keys have none
        projections |= {"q": (projections["q"][0], module.q_bias), "v": (projections["v"][0], module.v_bias)}
    return _of_self_attention(module, projections)


def _projections(module: Any) -> dict[str, Any]:
    if getattr(module, "qkv", None) is not None:
        return fused(module.qkv.weight, module.qkv.bias)
    return {name: (getattr(module, f"{name}_proj").weight, getattr(module, f"{name}_proj").bias) for name in "qkv"}


class _MapAttention(PrunableAttention):
    """Stands in for FastViT's ``Attention``, over the places of a map."""

    proj_drop: nn.Module

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """Self-attention, ``[N, D, R, S]`` to ``[N, D, R, S]``."""
        tokens = x.flatten(2).transpose(1, 2)
        out: Tensor = self.proj_drop(self.out_proj(self.heads(tokens, tokens, tokens)))
        folded: Tensor = out.transpose(1, 2).unflatten(2, x.shape[2:])
        return folded


@register_attention("timm.models.fastvit.Attention")
def _from_fastvit(module: Any) -> _MapAttention:
    return _build(_MapAttention, module, fused(module.qkv.weight, module.qkv.bias))


class _LatentPool(PrunableAttention):
    """Stands in for ``AttentionPoolLatent``: learnt queries attend to all tokens, then an MLP."""

    latent: nn.Parameter
    pos_embed: nn.Parameter | None
    proj_drop: nn.Module
    mlp_norm: nn.Module
    mlp: nn.Module | None
    pool: str

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.register_load_state_dict_pre_hook(_rename_mlp_norm)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Pools tokens."""
        if self.pos_embed is not None:
            x = x + self.pos_embed.to(x.dtype)
        query = self.latent.expand(x.shape[0], -1, -1)
        out: Tensor = self.proj_drop(self.out_proj(self.heads(query, x, x, attn_mask)))
        if self.mlp is not None:
            out = out + self.mlp(self.mlp_norm(out))
        if self.pool == "token":
            return out[:, 0]
        return out.mean(1) if self.pool == "avg" else out


def _rename_mlp_norm(_module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Renames norms: what the original calls its norm stands before the MLP; ours of that name stands behind the heads."""
    for name in [name for name in state if name.startswith(f"{prefix}norm.")]:
        state[f"{prefix}mlp_norm.{name.removeprefix(f'{prefix}norm.')}"] = state.pop(name)


@register_attention("timm.layers.attention_pool.AttentionPoolLatent")
def _from_latent_pool(module: Any) -> _LatentPool:
    if not isinstance(module.q, nn.Linear) or not isinstance(module.proj, nn.Linear):
        raise UnsupportedModelError(
            "AttentionPoolLatent must have query and output projections for its heads to be removed; found none. "
            "Register a converter for a subclass of it with torch_pruning_mope.register_attention."
        )
    projections = fused(module.kv.weight, module.kv.bias, "kv") | {"q": (module.q.weight, module.q.bias)}
    attention = build(_LatentPool, module, projections, module.proj, module.num_heads)
    attention.q_norm, attention.k_norm = module.q_norm, module.k_norm
    attention.latent, attention.pos_embed, attention.proj_drop = module.latent, module.pos_embed, module.proj_drop
    attention.mlp_norm, attention.mlp, attention.pool = module.norm, module.mlp, module.pool
    return attention


class _WindowAttention(PrunableAttention):
    """Stands in for Swin's ``WindowAttention``."""

    proj_drop: nn.Module
    relative_position_bias_table: nn.Parameter
    relative_position_index: Tensor

    def left_alone(self) -> list[nn.Parameter]:
        """The table as well."""
        return [*super().left_alone(), self.relative_position_bias_table]

    def bias(self) -> Tensor:
        """The bias added to the scores, ``[1, H, T, T]`` for the heads that are left."""
        area = self.relative_position_index.shape[0]
        table = self.own(self.relative_position_bias_table.T)
        return table[:, self.relative_position_index.view(-1)].view(1, -1, area, area)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Self-attention within windows."""
        bias = self.bias()
        if mask is not None:
            bias = (bias + mask[:, None]).repeat(x.shape[0] // mask.shape[0], 1, 1, 1)
        out: Tensor = self.proj_drop(self.out_proj(self.heads(x, x, x, bias)))
        return out


@register_attention("timm.models.swin_transformer.WindowAttention")
def _from_swin(module: Any) -> _WindowAttention:
    attention = _build(_WindowAttention, module, fused(module.qkv.weight, module.qkv.bias), tracks_heads=True)
    attention.scale = module.scale
    attention.relative_position_bias_table = module.relative_position_bias_table
    attention.register_buffer("relative_position_index", module.relative_position_index, persistent=False)
    return attention


class _RelPosAttention(PrunableAttention):
    """Stands in for timm's ``RelPosAttention``."""

    unlisted = ("rel_pos",)

    proj_drop: nn.Module
    rel_pos: Any

    def left_alone(self) -> list[nn.Parameter]:
        """The modules that make the bias as well."""
        return [*super().left_alone(), *([] if self.rel_pos is None else self.rel_pos.parameters())]

    def forward(self, x: Tensor, shared_rel_pos: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Self-attention."""
        bias = shared_rel_pos if self.rel_pos is None else self.rel_pos.get_bias()
        if bias is not None:
            bias = self.own(bias.transpose(0, 1)).transpose(0, 1)
        out: Tensor = self.proj_drop(self.out_proj(self.heads(x, x, x, bias)))
        return out


@register_attention("timm.models.vision_transformer_relpos.RelPosAttention")
def _from_relpos(module: Any) -> _RelPosAttention:
    attention = _build(_RelPosAttention, module, fused(module.qkv.weight, module.qkv.bias), tracks_heads=True)
    attention.q_norm, attention.k_norm = module.q_norm, module.k_norm
    attention.rel_pos = module.rel_pos
    return attention
