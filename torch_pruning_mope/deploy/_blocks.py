"""Plain pre-norm Transformer blocks in deployment form: a row of residual sub-layers.

A sub-layer without heads or neurons still adds the bias of its last layer, which moves into the layer before it; its norm
goes. Where the readout takes one token alone, the last attention asks for that token alone, and everything after it runs
on that token. Axes as in :mod:`torch_pruning_mope.towers`.
"""

from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from open_clip.transformer import CustomResidualAttentionBlock, LayerScale, ResidualAttentionBlock
from timm.models import vision_transformer
from torch import Tensor, nn

from ..towers import AttentionSublayer, FeedForwardSublayer, Sublayer, Tower
from ._attention import linear_of

_PLAIN = (ResidualAttentionBlock, CustomResidualAttentionBlock, vision_transformer.Block)
_TIMM: Any = vision_transformer
_SCALES = (LayerScale, _TIMM.LayerScale)
Narrowing = Literal["first", "pooled"]


class FoldedSublayer(nn.Module):
    """One residual sub-layer, called as open_clip's and timm's blocks are."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def get_weight_dtype(self) -> torch.dtype:
        """Returns the dtype of its weights, which open_clip asks its first block for."""
        return self.dtype


class Shift(FoldedSublayer):
    """Adds a constant, in place of an empty sub-layer that has none before it."""

    def __init__(self, constant: Tensor) -> None:
        super().__init__(constant.dtype)
        self.constant = nn.Parameter(constant, requires_grad=False)

    def forward(self, x: Float[Tensor, "N T D"], attn_mask: Tensor | None = None, **_: Any) -> Float[Tensor, "N T D"]:  # noqa: ARG002
        """Runs it."""
        return x + self.constant


class FoldedMlp(FoldedSublayer):
    """``x + after(output(first(norm(x))))``."""

    def __init__(self, norm: nn.Module, first: nn.Module, output: nn.Linear, after: nn.Module | None) -> None:
        super().__init__(output.weight.dtype)
        self.norm, self.first, self.output, self.after = norm, first, output, after

    def forward(self, x: Float[Tensor, "N T D"], attn_mask: Tensor | None = None, **_: Any) -> Float[Tensor, "N T D"]:  # noqa: ARG002
        """Runs it."""
        out = self.output(self.first(self.norm(x)))
        result: Tensor = x + (out if self.after is None else self.after(out))
        return result


class FoldedAttention(FoldedSublayer):
    """``x + after(attention(norm(x)))``."""

    def __init__(self, norm: nn.Module, attention: nn.Module, after: nn.Module | None) -> None:
        attention_: Any = attention
        super().__init__(attention_.out_proj.weight.dtype)
        self.norm, self.attention, self.after = norm, attention_, after
        self.narrows: Narrowing | None = None

    @property
    def output(self) -> nn.Linear:
        """The layer whose output joins the stream."""
        output: nn.Linear = self.attention.out_proj
        return output

    def forward(
        self,
        x: Float[Tensor, "N T D"],
        attn_mask: Tensor | None = None,
        *,
        pooled: Int[Tensor, "N"] | None = None,
        **_: Any,
    ) -> Float[Tensor, "N _ D"]:
        """Runs it."""
        keys = self.norm(x)
        queries = keys
        if self.narrows == "first":
            x, queries = x[:, :1], keys[:, :1]
        elif self.narrows == "pooled" and pooled is not None:
            rows = torch.arange(x.shape[0], device=x.device)
            x, queries = x[rows, pooled][:, None], keys[rows, pooled][:, None]
            attn_mask = None if attn_mask is None else attn_mask[pooled][:, None, None, :]
        out = self.attention.out_proj(self.attention.heads(queries, keys, keys, attn_mask))
        result: Tensor = x + (out if self.after is None else self.after(out))
        return result


@torch.no_grad()
def fold_blocks(tower: Tower, narrows: Narrowing | None) -> bool:
    """Mutates the model of a tower: its plain blocks become folded sub-layers, and those that only add a constant go."""
    plain = [block for block in tower.blocks if type(block.module) in _PLAIN and block.is_in_parts]
    siblings: Any = plain[0].siblings if plain else None
    if siblings is None or [block.module for block in plain] != list(siblings):
        return False
    folded: list[Any] = []
    for block in plain:
        for sublayer in block.sublayers:
            if sublayer.channels:
                folded.append(_folded(sublayer))
            else:
                _add(folded, _constant(sublayer))
    attentions = [sublayer for sublayer in folded if isinstance(sublayer, FoldedAttention)]
    if attentions:
        attentions[-1].narrows = narrows
    if not folded:
        folded.append(Shift(torch.zeros_like(plain[0].sublayers[-1].output.weight[:, :0].sum(1))))
    while len(siblings):
        del siblings[0]
    for sublayer in folded:
        siblings.append(sublayer)
    return True


def _folded(sublayer: Sublayer) -> FoldedSublayer:
    """Returns a sub-layer that has units left."""
    if isinstance(sublayer, AttentionSublayer):
        after = _after(sublayer.output, sublayer.scale)
        return FoldedAttention(sublayer.norm, sublayer.attention, after)
    if isinstance(sublayer, FeedForwardSublayer):
        return FoldedMlp(sublayer.norm, sublayer.first, sublayer.output, _after(sublayer.output, sublayer.scale))
    raise TypeError(f"sublayer must be one of attention or of neurons; found {type(sublayer).__name__}.")


def _after(output: nn.Linear, scale: nn.Module) -> nn.Module | None:
    """Mutates ``output``: multiplies layer scales that follow it into its weights."""
    parts = list(scale) if isinstance(scale, nn.Sequential) else [scale]
    rest: list[nn.Module] = []
    for part in parts:
        if isinstance(part, _SCALES) and not rest:
            output.weight.mul_(part.gamma[:, None])
            if output.bias is not None:
                output.bias.mul_(part.gamma)
        elif not isinstance(part, nn.Identity):
            rest.append(part)
    return nn.Sequential(*rest) if rest else None


def _constant(sublayer: Any) -> Tensor | None:
    """Returns the constant that an empty sub-layer adds to every token, ``[D]``."""
    bias = sublayer.output.bias
    if bias is None:
        bias = torch.zeros_like(sublayer.output.weight[:, :0].sum(1))
    constant: Tensor = sublayer.scale(bias.detach().clone()[None, None])[0, 0]
    return constant if constant.any() else None


def _add(folded: list[Any], constant: Tensor | None) -> None:
    """Mutates ``folded``: its last sub-layer adds a constant as well."""
    if constant is None:
        return
    last = folded[-1] if folded else None
    if isinstance(last, Shift):
        last.constant.add_(constant)
    elif last is not None and last.after is None:
        output = last.output
        if output.bias is None:
            output.bias = linear_of(output.weight, constant.clone()).bias
        else:
            output.bias.add_(constant)
    else:
        folded.append(Shift(constant.clone()))
