"""Attention in deployment form: one matrix product for queries, keys and values.

:class:`PrunableAttention` loses its scale too; transformers' own classes keep all but their projections.
"""

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
        """Returns the heads' channels of some of queries (0), keys (1) and values (2), each ``[N, H, T, E]``."""
        width = self.out_proj.in_features
        weight: Tensor = self.qkv_proj.weight
        bias: Tensor | None = self.qkv_proj.bias
        if stop - start < 3:
            own = slice(start * width, stop * width)
            weight, bias = weight[own], None if bias is None else bias[own]
        out = F.linear(x, weight, bias).unflatten(-1, (stop - start, self.num_heads, self.head_dim))
        parts: tuple[Tensor, ...] = out.permute(2, 0, 3, 1, 4).unbind()
        return parts


_DEPLOYED: dict[str, type[nn.Module]] = {}
"""Types of attention in deployment form, by the full names of their originals."""


def _change_class(attention: nn.Module, mixin: type[nn.Module]) -> None:
    """Mutates an attention: mixes a deployment form into its class."""
    kind = type(attention)
    folded = type(f"Folded{kind.__name__.lstrip('_')}", (mixin, kind), {})
    attention.__class__ = _DEPLOYED.setdefault(full_name(kind), folded)


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
    _change_class(attention, _OneProjection)


def linear_of(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Returns a frozen linear layer with these weights."""
    with torch.device("meta"):
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    linear.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return linear


_NAMES = {
    **dict.fromkeys(
        (
            "clip.modeling_clip.CLIPAttention",
            "siglip.modeling_siglip.SiglipAttention",
            "siglip2.modeling_siglip2.Siglip2Attention",
            "chinese_clip.modeling_chinese_clip.ChineseCLIPVisionAttention",
            "altclip.modeling_altclip.AltCLIPAttention",
        ),
        ("q_proj", "k_proj", "v_proj"),
    ),
    **dict.fromkeys(
        (
            "bert.modeling_bert.BertSelfAttention",
            "roberta.modeling_roberta.RobertaSelfAttention",
            "xlm_roberta.modeling_xlm_roberta.XLMRobertaSelfAttention",
            "altclip.modeling_altclip.AltRobertaSelfAttention",
            "chinese_clip.modeling_chinese_clip.ChineseCLIPTextSelfAttention",
        ),
        ("query", "key", "value"),
    ),
}
"""Self-attentions that take hidden states, and use them for nothing but these projections and their shape."""


class _Part(nn.Module):
    """Stands in for a projection: takes its channels of what all three put out."""

    def __init__(self, start: int, stop: int) -> None:
        super().__init__()
        self.start, self.stop = start, stop

    def forward(self, x: Tensor) -> Tensor:
        """``[..., 3 H E]`` to ``[..., H E]``."""
        return x[..., self.start : self.stop]


class _ProjectsFirst(nn.Module):
    """Mixed into the attention's own class: projects the hidden states once."""

    qkv_proj: nn.Linear

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """As the original."""
        return super().forward(self.qkv_proj(hidden_states), *args, **kwargs)


@torch.no_grad()
def fold_transformers_attention(attention: Any) -> None:
    """Mutates an attention of a known type: fuses its projections. Others are left alone."""
    names = _NAMES.get(full_name(type(attention)).removeprefix("transformers.models."))
    if names is None:
        return
    linears = [getattr(attention, name) for name in names]
    biases = [linear.bias for linear in linears]
    if any(bias is None for bias in biases):
        return
    joint = linear_of(torch.cat([linear.weight for linear in linears]), torch.cat(biases))
    start = 0
    for name, linear in zip(names, linears, strict=True):
        setattr(attention, name, _Part(start, start + linear.out_features))
        start += linear.out_features
    attention.qkv_proj = joint
    _change_class(attention, _ProjectsFirst)
