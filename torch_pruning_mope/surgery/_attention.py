"""Attention whose heads Torch-Pruning can remove (traps A, B, D and F of Torch-Pruning on CLIP-like models)."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class PrunableAttention(nn.Module):
    """Multi-head attention with separate projections, a free head count and a frozen softmax scale.

    ``nn.MultiheadAttention`` ties the rows of its fused projection to one width and derives the head dimension from it, so
    a head cannot leave. Here each projection is an ``nn.Linear`` of its own, the number of heads follows from the width that
    is left, and the scale stays what it was. State dicts of the module it replaced still load (``in_proj_*`` is split).

    Args:
        query_dim: Width ``D`` of the queries' input.
        key_dim: Width of the keys' and values' input.
        inner_dim: Heads times head dimension, ``H * E``.
        output_dim: Width of the output.
        num_heads: Number of heads ``H`` to begin with; must divide ``inner_dim``.
        bias: Whether the three input projections have biases.
        out_bias: Whether the output projection has one.
        dropout: Dropout of the attention weights in training.
        batch_first: Whether inputs are ``[N, T, D]`` rather than ``[T, N, D]``.

    Raises:
        ValueError: If ``num_heads`` does not divide ``inner_dim``.
    """

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
    ) -> None:
        super().__init__()
        if num_heads < 1 or inner_dim % num_heads:
            raise ValueError(f"num_heads must divide inner_dim={inner_dim}; found {num_heads}.")
        self.head_dim = inner_dim // num_heads
        self.scale = self.head_dim**-0.5
        self.dropout = dropout
        self.batch_first = batch_first
        self.q_proj = nn.Linear(query_dim, inner_dim, bias=bias)
        self.k_proj = nn.Linear(key_dim, inner_dim, bias=bias)
        self.v_proj = nn.Linear(key_dim, inner_dim, bias=bias)
        self.out_proj = nn.Linear(inner_dim, output_dim, bias=out_bias)
        self.register_load_state_dict_pre_hook(_split_fused_projection)  # type: ignore[no-untyped-call]

    @property
    def num_heads(self) -> int:
        """Number of heads that are left, read off the value projection.

        Raises:
            RuntimeError: If head dimensions were cut instead of whole heads.
        """
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

    def heads(
        self,
        query: Float[Tensor, "N Tq Dq"],
        key: Float[Tensor, "N Tk Dk"],
        value: Float[Tensor, "N Tk Dk"],
        mask: Tensor | None = None,
    ) -> Float[Tensor, "N Tq HE"]:
        """The heads' outputs side by side, as ``out_proj`` receives them.

        Args:
            query: Batch-first input of the query projection.
            key: Batch-first input of the key projection.
            value: Batch-first input of the value projection.
            mask: Additive, or boolean with True where attention is *allowed*; broadcastable to ``[N, H, Tq, Tk]``.

        Returns:
            Head ``h`` in channels ``h * E`` to ``(h + 1) * E``.
        """
        q, k, v = (
            projection(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for projection, x in ((self.q_proj, query), (self.k_proj, key), (self.v_proj, value))
        )
        dropout = self.dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, scale=self.scale)
        return out.transpose(1, 2).flatten(2)

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
        """Stands in for ``nn.MultiheadAttention.forward``, which see for shapes and mask conventions.

        Returns:
            The output, and None in place of the attention weights.

        Raises:
            NotImplementedError: If attention weights are asked for.
        """
        if need_weights:
            raise NotImplementedError("need_weights must be False; PrunableAttention does not form attention weights.")
        if not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
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
        """``[N * H0, Tq, Tk]`` as ``[N, H or 1, Tq, Tk]``, where ``H0`` was the head count before pruning (trap Q).

        Returns:
            The mask.

        Raises:
            ValueError: If heads differ in a mask whose head count is no longer this module's.
        """
        mask = mask.unflatten(0, (batch, -1))
        if mask.shape[1] == self.num_heads:
            return mask
        if not torch.equal(mask, mask[:, :1].expand_as(mask)):
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


def _split_fused_projection(
    _module: nn.Module, state: dict[str, Any], prefix: str, *_: Any
) -> None:  # a load_state_dict pre-hook: it edits ``state``
    """Splits ``in_proj_weight`` and ``in_proj_bias`` of an original checkpoint into q, k and v; renames split weights."""
    for suffix, separate in (("weight", "{}_proj_weight"), ("bias", None)):
        fused = state.pop(f"{prefix}in_proj_{suffix}", None)
        parts: Mapping[str, Tensor | None]
        if fused is not None:
            parts = dict(zip("qkv", fused.chunk(3), strict=True))
        elif separate is not None:
            parts = {name: state.pop(prefix + separate.format(name), None) for name in "qkv"}
        else:
            continue
        state.update({f"{prefix}{name}_proj.{suffix}": part for name, part in parts.items() if part is not None})
