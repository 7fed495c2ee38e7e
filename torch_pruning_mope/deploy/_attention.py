"""Attention in deployment form: one matrix product for queries, keys and values, and no scale of its own."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from .._registry import full_name
from ..surgery import PrunableAttention
from ..surgery._attention import HeadProjection


class _OneProjection(PrunableAttention):
    """Deployment form of a :class:`PrunableAttention`; mixed into the attention's own class.

    Its weight stacks the rows of queries, keys and values, as ``nn.MultiheadAttention`` does: where their inputs differ, each
    takes its own rows.
    """

    qkv_proj: nn.Linear
    kept_heads: Tensor | None

    def _count_heads(self) -> int:
        return self.out_proj.in_features // self.head_dim

    def extra_repr(self) -> str:
        """Head count and dimension for printing."""
        return f"heads={self.num_heads}, head_dim={self.head_dim}"

    def own(self, per_head: Tensor) -> Tensor:
        """Selects the heads that are left from numbers per original head."""
        return per_head if self.kept_heads is None else per_head[self.kept_heads]

    def projected(
        self, query: Float[Tensor, "N Tq Dq"], key: Float[Tensor, "N Tk Dk"], value: Float[Tensor, "N Tk Dk"]
    ) -> tuple[Float[Tensor, "N H Tq E"], Float[Tensor, "N H Tk E"], Float[Tensor, "N H Tk E"]]:
        """Queries, keys and values of each head, from as few products as the inputs allow."""
        if query is key and key is value:
            q, k, v = self._rows(query, 0, 3)
        else:
            (q,) = self._rows(query, 0, 1)
            k, v = self._rows(key, 1, 3) if key is value else (*self._rows(key, 1, 2), *self._rows(value, 2, 3))
        return q, k, v

    def _rows(self, x: Tensor, start: int, stop: int) -> tuple[Tensor, ...]:
        """The heads' channels of some of queries (0), keys (1) and values (2), each ``[N, H, T, E]``."""
        width = self.out_proj.in_features
        weight: Tensor = self.qkv_proj.weight
        bias: Tensor | None = self.qkv_proj.bias
        if stop - start < 3:
            own = slice(start * width, stop * width)
            weight, bias = weight[own], None if bias is None else bias[own]
        out = F.linear(x, weight, bias).unflatten(-1, (stop - start, self.num_heads, self.head_dim))
        parts: tuple[Tensor, ...] = out.permute(2, 0, 3, 1, 4).unbind()
        return parts


_DEPLOYED: dict[str, type[PrunableAttention]] = {}
"""Types of attention in deployment form, by the full names of their originals."""


@torch.no_grad()
def fold_attention(attention: PrunableAttention) -> None:
    """Mutates an attention: fuses its projections, where queries and keys have inputs of one width."""
    attention.dropout = 0.0
    linears: list[nn.Linear] = [attention.q_proj, attention.k_proj, attention.v_proj]
    if len({linear.in_features for linear in linears}) > 1 or not attention.out_proj.in_features:
        return
    folded: Any = attention
    if isinstance(attention.q_norm, nn.Identity) and attention.query_scale is None:
        scale, folded.scale = attention.scale, 1.0
    else:  # what follows the projection undoes a scale of the weights, or would be scaled itself
        scale = 1.0
    heads = attention.v_proj.heads if isinstance(attention.v_proj, HeadProjection) else None
    folded.register_buffer("kept_heads", heads, persistent=heads is not None)
    scales = (scale, 1.0, 1.0)
    weight = torch.cat([linear.weight * factor for linear, factor in zip(linears, scales, strict=True)])
    bias = None
    if any(linear.bias is not None for linear in linears):
        biases = [
            linear.weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias for linear in linears
        ]
        bias = torch.cat([part * factor for part, factor in zip(biases, scales, strict=True)])
    del folded.q_proj, folded.k_proj, folded.v_proj
    folded.qkv_proj = linear_of(weight, bias)
    kind = type(attention)
    name = f"Folded{kind.__name__.lstrip('_')}"
    folded.__class__ = _DEPLOYED.setdefault(full_name(kind), type(name, (_OneProjection, kind), {}))


def linear_of(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A frozen linear layer with these weights."""
    with torch.device("meta"):
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    linear.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return linear
