"""open_clip's text towers that narrow to the pooled token."""

from typing import Any

from jaxtyping import Float, Int
from open_clip.model import CLIP
from open_clip.transformer import TextTransformer
from torch import Tensor
from torch.nn import functional as F

from ..towers import Stream
from ..towers._open_clip import OpenClipText


def _embed(tower: OpenClipText, blocks: Any, tokens: Tensor) -> Tensor:
    stream = tower.stem(tokens)
    x = stream.x
    for block in blocks:
        x = block(x, stream.mask, pooled=stream.pooled)
    return tower.readout(Stream(x, None, stream.pooled))


class FoldedClip(CLIP):  # type: ignore[misc]
    """open_clip's ``CLIP`` whose text tower ends with the pooled token alone."""

    def encode_text(self, text: Int[Tensor, "N T"], normalize: bool = False) -> Float[Tensor, "N J"]:
        """Embeds captions, which may be shorter than the context.

        Args:
            text: Token ids.
            normalize: Whether to divide embeddings by their norms.

        Returns:
            The embeddings.
        """
        tower = OpenClipText(self, self.text_pool_type, getattr(self, "text_eos_id", None))
        features = _embed(tower, self.transformer.resblocks, text)
        return F.normalize(features, dim=-1) if normalize else features


class FoldedTextTransformer(TextTransformer):  # type: ignore[misc]
    """open_clip's ``TextTransformer`` that ends with the pooled token alone."""

    def forward(self, text: Int[Tensor, "N T"]) -> Float[Tensor, "N J"]:
        """Embeds captions, which may be shorter than the context.

        Args:
            text: Token ids.

        Returns:
            The embeddings.
        """
        tower = OpenClipText(self, self.pool_type, getattr(self, "eos_id", None))
        return _embed(tower, self.transformer.resblocks, text)
