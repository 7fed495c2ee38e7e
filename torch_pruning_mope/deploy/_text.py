"""open_clip's text towers that narrow to the pooled token."""

from typing import Any

import torch
from jaxtyping import Float, Int
from open_clip.model import CLIP
from open_clip.transformer import TextTransformer, text_global_pool
from torch import Tensor, nn
from torch.nn import functional as F


def _embed(owner: Any, tokens: Tensor, pool_type: str, eos_id: int | None) -> Tensor:
    """Embeds captions; ``owner`` holds the parts. Where the token stands is found by pooling the positions."""
    dtype, length = owner.transformer.get_cast_dtype(), tokens.shape[1]
    places = torch.arange(length, device=tokens.device).expand_as(tokens)[..., None]
    pooled = text_global_pool(places, tokens, pool_type, eos_token_id=eos_id)[:, 0]
    x: Tensor = owner.token_embedding(tokens).to(dtype) + owner.positional_embedding[:length].to(dtype)
    mask = None if owner.attn_mask is None else owner.attn_mask[:length, :length].to(dtype)
    whole = True
    for block in owner.transformer.resblocks:
        x = block(x, mask, pooled=pooled)
        whole &= getattr(block, "narrows", None) is None
    x = x[torch.arange(x.shape[0], device=x.device), pooled] if whole else x[:, 0]
    x = owner.ln_final(x)
    projection = owner.text_projection
    if projection is not None:
        x = projection(x) if isinstance(projection, nn.Linear) else x @ projection
    return x


class FoldedClip(CLIP):  # type: ignore[misc]
    """open_clip's ``CLIP`` whose text tower ends with the pooled token alone."""

    def encode_text(self, text: Int[Tensor, "N T"], normalize: bool = False) -> Float[Tensor, "N J"]:
        """Embeds captions, which may be shorter than the context."""
        features = _embed(self, text, self.text_pool_type, getattr(self, "text_eos_id", None))
        return F.normalize(features, dim=-1) if normalize else features


class FoldedTextTransformer(TextTransformer):  # type: ignore[misc]
    """open_clip's ``TextTransformer`` that ends with the pooled token alone."""

    def forward(self, text: Int[Tensor, "N T"]) -> Float[Tensor, "N J"]:
        """Embeds captions, which may be shorter than the context."""
        return _embed(self, text, self.pool_type, getattr(self, "eos_id", None))
