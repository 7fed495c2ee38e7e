"""Any dual encoder with open_clip's methods, for tools that are written against them."""

from typing import Any

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..dual_encoder import DualEncoder
from ..encoder import TowerName
from ._embedder import Embedder


class OpenClipModel(nn.Module):
    """A model with the methods of open_clip's: ``encode_image``, ``encode_text``, and both at once. It shares the weights.

    A pruned model of open_clip has them anyway; one of transformers, or of your own, needs this.
    """

    def __init__(self, model: DualEncoder | nn.Module) -> None:
        super().__init__()
        embedder = Embedder(model)
        self.model = embedder.model
        self._embedder = embedder

    def encode_image(self, image: Float[Tensor, "N ..."], normalize: bool = False) -> Float[Tensor, "N J"]:
        """Returns image embeddings, of unit length if asked."""
        return self._encode("image", image, normalize)

    def encode_text(self, text: Int[Tensor, "N T"], normalize: bool = False) -> Float[Tensor, "N J"]:
        """Returns text embeddings, of unit length if asked."""
        return self._encode("text", text, normalize)

    def forward(self, image: Tensor | None = None, text: Tensor | None = None) -> dict[str, Any]:
        """Computes normalised embeddings of the inputs given, and the scale of the logits, by open_clip's names."""
        scale = getattr(self.model, "logit_scale", None)
        return {
            "image_features": None if image is None else self.encode_image(image, normalize=True),
            "text_features": None if text is None else self.encode_text(text, normalize=True),
            "logit_scale": scale.exp() if isinstance(scale, Tensor) else 100.0,
        }

    def _encode(self, tower: TowerName, inputs: Tensor, normalize: bool) -> Tensor:
        found = self._embedder.raw(tower, inputs)
        return F.normalize(found, dim=-1) if normalize else found
