"""Attention of torch, and its Transformer layers around it."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UnsupportedModelError
from ._attention import PrunableAttention
from ._swap import build, in_projections, register_attention


@register_attention(nn.MultiheadAttention)
def _from_torch(module: nn.MultiheadAttention) -> PrunableAttention:
    if module.bias_k is not None or module.add_zero_attn:
        raise UnsupportedModelError(
            "nn.MultiheadAttention with add_bias_kv or add_zero_attn cannot be pruned; register a converter for a "
            "subclass of it with torch_pruning_mope.register_attention."
        )
    return build(
        PrunableAttention,
        module,
        in_projections(module),
        module.out_proj,
        module.num_heads,
        dropout=module.dropout,
        batch_first=module.batch_first,
    )


class _Encoder(nn.TransformerEncoder):
    """Stands in for ``nn.TransformerEncoder``: no nested tensors, whose kernels read the fused attention that is gone.

    Where the original would have used them, it puts out zeros for padding, and so does this.
    """

    _zeroes_padding: bool

    def forward(
        self,
        src: Tensor,
        mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool | None = None,
    ) -> Tensor:
        """As in the original."""
        if src_key_padding_mask is None or mask is not None or not self._nested(src, src_key_padding_mask):
            return super().forward(src, mask, src_key_padding_mask, is_causal)
        output = src
        for layer in self.layers:
            output = layer(output, src_key_padding_mask=src_key_padding_mask)
        output = output.masked_fill(src_key_padding_mask.bool()[..., None], 0.0)
        return output if self.norm is None else self.norm(output)

    def _nested(self, src: Tensor, padding: Tensor) -> bool:
        """Returns whether the original would have gone through nested tensors."""
        if not self._zeroes_padding or self.training or src.dim() != 3 or torch.is_autocast_enabled():
            return False
        if not torch.backends.mha.get_fastpath_enabled() or (torch.is_grad_enabled() and self._has_gradients(src)):
            return False
        if not self.mask_check:
            return True
        # The shape of a nested tensor: what is kept stands before what is padded.
        return not torch.compiler.is_compiling() and bool((padding.bool().int().diff(dim=1) >= 0).all())

    def _has_gradients(self, src: Tensor) -> bool:
        return src.requires_grad or any(parameter.requires_grad for parameter in self.layers[0].parameters())


@register_attention(nn.TransformerEncoder)
def _from_encoder(module: Any) -> _Encoder:
    changed = copy.copy(module)
    changed._modules = dict(module._modules)
    changed.__class__ = _Encoder
    changed._zeroes_padding, changed.use_nested_tensor = module.use_nested_tensor, False
    return changed  # type: ignore[no-any-return]
