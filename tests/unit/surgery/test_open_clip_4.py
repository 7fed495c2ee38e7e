"""Attention with the call conventions of open_clip 4: ``k_x`` and ``v_x``, keys of their own width, True means allowed."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from open_clip.transformer import Attention as Attention3
from torch import Tensor, nn

from torch_pruning_mope.surgery import swap_attention


class Attention(Attention3):
    """A stand-in that computes by torch's own function."""

    def __init__(self, dim: int, heads: int, key_dim: int | None = None) -> None:
        super().__init__(dim, heads)
        if key_dim is not None:
            self.in_proj_weight: Any = None
        for name, width in zip("qkv", (dim, key_dim, key_dim), strict=True):
            weight = None if width is None or key_dim is None else nn.Parameter(torch.randn(dim, width) / width**0.5)
            setattr(self, f"{name}_proj_weight", weight)

    def forward(  # type: ignore[override]
        self, x: Tensor, k_x: Tensor | None = None, v_x: Tensor | None = None, attn_mask: Tensor | None = None
    ) -> Tensor:
        fused = self.in_proj_weight is not None
        weights = (
            self.in_proj_weight.chunk(3) if fused else (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        )
        inputs = (x, x if k_x is None else k_x, x if v_x is None else v_x)
        biases = self.in_proj_bias.chunk(3)
        q, k, v = (
            F.linear(i, w, b).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for i, w, b in zip(inputs, weights, biases, strict=True)
        )
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, scale=self.scale)
        projected: Tensor = self.out_proj(out.transpose(1, 2).flatten(2))
        return projected


Attention.__module__, Attention.__qualname__ = "open_clip.transformer", "Attention"


@pytest.mark.parametrize("key_dim", [None, 20])
def test_calls_masks_and_widths_of_their_own(key_dim: int | None) -> None:
    model = nn.ModuleDict({"attn": Attention(16, 4, key_dim)}).eval()
    x, keys = torch.randn(2, 5, 16), torch.randn(2, 7, key_dim or 16)
    allowed = torch.rand(5, 7) > 0.3
    allowed[:, 0] = True
    calls: list[dict[str, Any]] = [
        {"k_x": keys, "v_x": keys},
        {"k_x": keys, "v_x": keys, "attn_mask": allowed},
        {"k_x": keys, "v_x": keys, "attn_mask": torch.randn(5, 7)},
    ]
    if key_dim is None:
        calls += [{}, {"attn_mask": torch.ones(5, 5).tril().bool()}, {"k_x": x + 1}]
    before = [model["attn"](x, **call) for call in calls]
    swap_attention(model)
    assert type(model["attn"]) is not Attention
    for call, expected in zip(calls, before, strict=True):
        torch.testing.assert_close(model["attn"](x, **call), expected)


class TextAttention(nn.Module):
    """A stand-in for the attention of its ``ModernTextTransformer``; angles turn channels as complex numbers do."""

    def __init__(self, dim: int, heads: int, *, value_residual: bool = False) -> None:
        super().__init__()
        self.heads, self.value_residual = heads, value_residual
        self.qkv, self.proj, self.gate = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim), nn.Linear(dim, dim, bias=False)
        self.q_norm, self.k_norm = nn.RMSNorm(dim // heads), nn.RMSNorm(dim // heads)

    def forward(
        self,
        x: Tensor,
        rope_embed: Tensor | None = None,
        key_bias: Tensor | None = None,
        is_causal: bool = False,
        v_first: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        q, k = self.q_norm(q), self.k_norm(k)
        if rope_embed is not None:
            angles = torch.complex(*rope_embed.chunk(2, -1))
            q, k = (
                torch.view_as_real(torch.view_as_complex(each.unflatten(-1, (-1, 2)).contiguous()) * angles).flatten(-2)
                for each in (q, k)
            )
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=key_bias, is_causal=is_causal).transpose(1, 2)
        return self.proj(out.flatten(2) * self.gate(x).sigmoid()), None


TextAttention.__module__, TextAttention.__qualname__ = "open_clip.transformer", "ModernTextAttention"


def test_texts_with_angles_and_a_gate() -> None:
    model = nn.ModuleDict({"attn": TextAttention(16, 4)}).eval()
    x, angles = torch.randn(2, 5, 16), torch.randn(5, 2)
    bias = torch.zeros(2, 1, 1, 5)
    bias[0, ..., 3:] = float("-inf")
    calls: list[dict[str, Any]] = [
        {},
        {"rope_embed": torch.cat([angles.cos(), angles.sin()], -1), "is_causal": True},
        {"key_bias": bias},
    ]
    before = [model["attn"](x, **call) for call in calls]
    assert swap_attention(model) == 1
    assert model["attn"].makers()[-1] is model["attn"].gate
    for call, (expected, _) in zip(calls, before, strict=True):
        torch.testing.assert_close(model["attn"](x, **call)[0], expected)


def test_texts_whose_layers_share_values_keep_their_heads() -> None:
    model = nn.ModuleDict({"attn": TextAttention(16, 4, value_residual=True)})
    assert swap_attention(model) == 0
