"""Attention whose heads Torch-Pruning can remove (traps A, B, D and F of Torch-Pruning on CLIP-like models)."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from .._state import exclusive
from ._parts import showing


@contextmanager
def tracing(model: nn.Module) -> Iterator[None]:
    """Inside, what holds units shows Torch-Pruning's tracer the layers around them alone.

    A plain attribute of the modules traced, which torch.compile guards.
    """
    with exclusive(model), showing(model):
        before = {module: module.is_traced for module in model.modules() if isinstance(module, PrunableAttention)}
        try:
            for module in before:
                module.is_traced = True
            yield
        finally:
            for module, flag in before.items():
                module.is_traced = flag


class HeadProjection(nn.Linear):
    """A value projection that knows which of the original heads its rows are, for what is per head besides."""

    heads: Tensor

    def __init__(self, input_dim: int, num_heads: int, head_dim: int, *, bias: bool = True) -> None:
        super().__init__(input_dim, num_heads * head_dim, bias=bias)
        self.head_dim = head_dim
        # On the CPU even where weights are to be on "meta": nothing replaces it.
        self.register_buffer("heads", torch.arange(num_heads, device="cpu"), persistent=False)

    def keep(self, channels: list[int]) -> None:
        """Mutates it: records that only these channels of whole heads are left."""
        kept = torch.tensor(channels, dtype=torch.long)
        heads = (kept // self.head_dim).unique_consecutive()
        if len(heads) * self.head_dim != len(kept):
            raise ValueError(
                f"channels must be whole heads of {self.head_dim}; found {len(kept)} of {len(heads)} heads."
            )
        self.heads = self.heads[heads.to(self.heads.device)]


class PrunableAttention(nn.Module):
    """Multi-head attention with separate projections, a free head count and a frozen softmax scale.

    ``nn.MultiheadAttention`` ties the rows of its fused projection to one width and derives the head dimension from it, so
    a head cannot leave. Here each projection is an ``nn.Linear`` of its own, the number of heads follows from the width that
    is left, and the scale stays what it was. State dicts of the module it replaced still load: fused projections are split
    and other names of the projections translated.

    What some models do besides hangs on attributes, all off by default: ``q_norm`` and ``k_norm`` over each head's channels,
    ``gate`` and ``norm`` on the heads' outputs, ``query_scale`` and ``head_scale``, one number per head.
    """

    unlisted: tuple[str, ...] = ()
    """Parts whose units are none of the encoder's."""
    in_proj_weight = None
    in_proj_bias = None
    """None as in attention without biases, which torch's Transformer layers run by their plain code."""
    _qkv_same_embed_dim = False

    def __init__(
        self,
        query_dim: int,
        key_dim: int,
        inner_dim: int,
        output_dim: int,
        num_heads: int,
        *,
        bias: bool = True,
        out_bias: bool = True,
        dropout: float = 0.0,
        batch_first: bool = True,
        tracks_heads: bool = False,
    ) -> None:
        super().__init__()
        if num_heads < 1 or inner_dim % num_heads:
            raise ValueError(f"num_heads must divide inner_dim={inner_dim}; found {num_heads}.")
        self.head_dim = inner_dim // num_heads
        self.scale = self.head_dim**-0.5
        self.dropout = dropout
        self.batch_first = batch_first
        self.is_traced = False
        self.q_proj = nn.Linear(query_dim, inner_dim, bias=bias)
        self.k_proj = nn.Linear(key_dim, inner_dim, bias=bias)
        self.v_proj: nn.Linear = (
            HeadProjection(key_dim, num_heads, self.head_dim, bias=bias)
            if tracks_heads
            else nn.Linear(key_dim, inner_dim, bias=bias)
        )
        self.out_proj = nn.Linear(inner_dim, output_dim, bias=out_bias)
        self.q_norm: nn.Module = nn.Identity()
        self.k_norm: nn.Module = nn.Identity()
        self.norm: nn.Module = nn.Identity()
        self.gate: nn.Linear | None = None
        self.query_scale: nn.Parameter | None = None
        self.query_scale_max = math.log(100)
        self.head_scale: nn.Parameter | None = None
        self.register_load_state_dict_pre_hook(translate_names)  # type: ignore[no-untyped-call]

    @property
    def num_heads(self) -> int:
        """Number of heads that are left, read off the value projection."""
        return self._count_heads()

    @num_heads.setter
    def num_heads(self, heads: int) -> None:
        # tp.load_state_dict sets every public attribute, this one after the projections it follows from.
        if heads != self._count_heads():
            raise AttributeError(f"num_heads must be what the projections have, {self._count_heads()}; found {heads}.")

    def _count_heads(self) -> int:
        heads, rest = divmod(self.v_proj.out_features, self.head_dim)
        if rest or self.q_proj.out_features != self.v_proj.out_features:
            raise RuntimeError(
                f"PrunableAttention needs whole heads of {self.head_dim} channels; found q/v widths "
                f"{self.q_proj.out_features}/{self.v_proj.out_features}. Build the pruner with "
                "encoder.pruner_arguments(...), which prunes heads and leaves head dimensions alone."
            )
        return heads

    def extra_repr(self) -> str:
        """Head count and dimension for printing."""
        return f"heads={self.v_proj.out_features // self.head_dim}, head_dim={self.head_dim}"

    def makers(self) -> tuple[nn.Linear, ...]:
        """The layers that make the heads' channels."""
        return (self.q_proj, self.k_proj, self.v_proj, *(() if self.gate is None else (self.gate,)))

    def left_alone(self) -> list[nn.Parameter]:
        """Parameters that pruning does not touch: of the norms that all heads share, and what is per head besides."""
        shared = [*self.q_norm.parameters(), *self.k_norm.parameters()]
        return shared + [p for p in (self.query_scale, self.head_scale) if p is not None]

    def own(self, per_head: Tensor) -> Tensor:
        """Of numbers per original head, along the first dimension, those of the heads that are left."""
        return per_head[self.v_proj.heads] if isinstance(self.v_proj, HeadProjection) else per_head

    def projected(
        self, query: Float[Tensor, "N Tq Dq"], key: Float[Tensor, "N Tk Dk"], value: Float[Tensor, "N Tk Dk"]
    ) -> tuple[Float[Tensor, "N H Tq E"], Float[Tensor, "N H Tk E"], Float[Tensor, "N H Tk E"]]:
        """Queries, keys and values of each head."""
        q, k, v = (
            projection(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for projection, x in ((self.q_proj, query), (self.k_proj, key), (self.v_proj, value))
        )
        return q, k, v

    def rotated(self, x: Float[Tensor, "N H T E"], rope: Tensor | None) -> Float[Tensor, "N H T E"]:  # noqa: ARG002
        """Queries or keys with their positions turned in; a matter for subclasses that have rotary positions."""
        return x

    def heads(
        self,
        query: Float[Tensor, "N Tq Dq"],
        key: Float[Tensor, "N Tk Dk"],
        value: Float[Tensor, "N Tk Dk"],
        mask: Tensor | None = None,
        *,
        causal: bool = False,
        rope: Tensor | None = None,
    ) -> Float[Tensor, "N Tq HE"]:
        """The heads' outputs side by side, as ``out_proj`` receives them."""
        if not self.out_proj.in_features:
            return query.new_empty(*query.shape[:-1], 0)
        if self.is_traced:
            # Only that the channels of the projections go together: what is per head, or the same for all, would enter the
            # graph with channels it does not have (trap O), and each operation more slows every group that is asked for.
            keys = (self.k_proj(key) + self.v_proj(value)).mean(1, keepdim=True)
            return self._gated(self.q_proj(query) + keys, query)
        q, k, v = self.projected(query, key, value)
        q, k = self.rotated(self.q_norm(q), rope), self.rotated(self.k_norm(k), rope)
        if self.query_scale is not None:  # scaled cosine: Swin Transformer V2, arXiv 2111.09883
            q = F.normalize(q, dim=-1) * self.own(self.query_scale).clamp(max=self.query_scale_max).exp()
            k = F.normalize(k, dim=-1)
        dropout = self.dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(
            q.type_as(v), k.type_as(v), v, attn_mask=mask, dropout_p=dropout, is_causal=causal, scale=self.scale
        )
        if self.head_scale is not None:
            out = out * self.own(self.head_scale)
        out = out.transpose(1, 2)
        if torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling():
            # Under torch.export: the attention that it is decomposed into may order its output otherwise in memory than the
            # one that was traced, and merging the heads by a view, as traced, then fails.
            out = out.clone(memory_format=torch.contiguous_format)
        return self._gated(out.flatten(2), query)

    def _gated(self, out: Tensor, query: Tensor) -> Tensor:
        """The heads' outputs, normed and gated where the model does so."""
        result: Tensor = self.norm(out)
        return result if self.gate is None else result * self.gate(query).sigmoid()

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,  # noqa: ARG002 (part of nn.MultiheadAttention's call)
        is_causal: bool = False,  # noqa: ARG002 (a hint there; the mask itself decides)
    ) -> tuple[Tensor, None]:
        """Stands in for ``nn.MultiheadAttention.forward``, which see for shapes and mask conventions."""
        if need_weights:
            raise NotImplementedError("need_weights must be False; PrunableAttention does not form attention weights.")
        if not self.batch_first:  # what is the same stays the same
            turned = query.transpose(0, 1)
            value = turned if value is query else value.transpose(0, 1)
            query, key = turned, turned if key is query else key.transpose(0, 1)
        mask = self._merged_mask(attn_mask, key_padding_mask, query)
        out: Tensor = self.out_proj(self.heads(query, key, value, mask))
        return (out if self.batch_first else out.transpose(0, 1)), None

    def _merged_mask(self, attn_mask: Tensor | None, key_padding_mask: Tensor | None, query: Tensor) -> Tensor | None:
        """Both masks of ``nn.MultiheadAttention`` as one additive mask, or None."""
        merged: Tensor | None = None
        if attn_mask is not None:
            merged = _additive(attn_mask, query.dtype)
            if merged.ndim == 3:
                merged = self._per_sample(merged, query.shape[0])
        if key_padding_mask is not None:
            padding = _additive(key_padding_mask, query.dtype)[:, None, None, :]
            merged = padding if merged is None else merged + padding
        return merged

    def _per_sample(self, mask: Tensor, batch: int) -> Tensor:
        """``[N * H0, Tq, Tk]`` as ``[N, H or 1, Tq, Tk]``, where ``H0`` was the head count before pruning (trap Q)."""
        mask = mask.unflatten(0, (batch, -1))
        if mask.shape[1] == self.num_heads:
            return mask
        if not torch.compiler.is_compiling() and not torch.equal(mask, mask[:, :1].expand_as(mask)):
            raise ValueError(
                f"attn_mask must hold one mask per head that is left ({self.num_heads}) or the same for all; found "
                f"{mask.shape[1]} different ones. Rebuild the mask with the pruned head count."
            )
        return mask[:, :1]


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """``nn.MultiheadAttention``'s masks (boolean: True is *forbidden*) in additive form."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, float("-inf"))


_FUSED = {"in_proj": "qkv", "qkv": "qkv", "kv": "kv"}
_RENAMED = {
    "q_proj_weight": "q_proj.weight",
    "k_proj_weight": "k_proj.weight",
    "v_proj_weight": "v_proj.weight",
    "q_bias": "q_proj.bias",
    "v_bias": "v_proj.bias",
    "q.": "q_proj.",
    "proj.": "out_proj.",
    "c_proj.": "out_proj.",
    "o.": "out_proj.",
    "k.": "k_proj.",
    "v.": "v_proj.",
    "ln_q.": "q_norm.",
    "ln_k.": "k_norm.",
    "ln_inner.": "norm.",
    "logit_scale": "query_scale",
}
"""Names that the attention of open_clip, timm and torch has for what we call otherwise."""


def translate_names(
    _module: nn.Module, state: dict[str, Any], prefix: str, *_: Any
) -> None:  # a load_state_dict pre-hook: it edits ``state``
    """Splits the fused projections of an original checkpoint into q, k and v, and gives other parts our names."""
    for fused, letters in _FUSED.items():
        for separator, suffix in (("_", "weight"), (".", "weight"), ("_", "bias"), (".", "bias")):
            tensor = state.pop(f"{prefix}{fused}{separator}{suffix}", None)
            if tensor is not None:
                parts = zip(letters, tensor.chunk(len(letters)), strict=True)
                state.update({f"{prefix}{name}_proj.{suffix}": part for name, part in parts})
    for theirs, ours in _RENAMED.items():
        for name in [name for name in state if name.startswith(prefix + theirs)]:
            state[prefix + ours + name.removeprefix(prefix + theirs)] = state.pop(name)
