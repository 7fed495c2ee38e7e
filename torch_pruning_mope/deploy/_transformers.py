"""Attention of Hugging Face's transformers with one product for queries, keys and values."""

from typing import Any

import torch
from torch import Tensor, nn

from .._registry import full_name
from ._attention import linear_of

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


class _OneProjection(nn.Module):
    """Mixed into the attention's own class: projects the hidden states once."""

    qkv_proj: nn.Linear

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """As the original."""
        return super().forward(self.qkv_proj(hidden_states), *args, **kwargs)


_DEPLOYED: dict[str, type[nn.Module]] = {}


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
    kind = type(attention)
    attention.__class__ = _DEPLOYED.setdefault(
        full_name(kind), type(f"Folded{kind.__name__}", (_OneProjection, kind), {})
    )
