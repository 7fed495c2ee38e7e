"""Any dual encoder, wrapped, pruned, folded or as its library built it, with open_clip's methods."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from .._state import evaluation_mode
from ..dual_encoder import DualEncoder
from ..encoder import TowerName
from ..errors import UnsupportedModelError
from ..metrics import normalised
from ..towers import is_known, towers_of


class OpenClipModel(nn.Module):
    """A model with the methods of open_clip's: ``encode_image``, ``encode_text``, and both at once. It shares the weights.

    A pruned model of open_clip has them anyway; one of transformers, or of your own, needs this.
    """

    def __init__(self, model: DualEncoder | nn.Module) -> None:
        super().__init__()
        self.model: nn.Module = model.model if isinstance(model, DualEncoder) else model
        self._encode = _encoders(model)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.model.parameters()).device

    def encode_image(self, image: Float[Tensor, "N ..."], normalize: bool = False) -> Float[Tensor, "N J"]:
        """Returns image embeddings, of unit length if asked."""
        return self.encode("image", image, normalize)

    def encode_text(self, text: Int[Tensor, "N T"], normalize: bool = False) -> Float[Tensor, "N J"]:
        """Returns text embeddings, of unit length if asked."""
        return self.encode("text", text, normalize)

    def forward(self, image: Tensor | None = None, text: Tensor | None = None) -> dict[str, Any]:
        """Computes normalised embeddings of the inputs given, and the scale of the logits, by open_clip's names."""
        scale = getattr(self.model, "logit_scale", None)
        return {
            "image_features": None if image is None else self.encode_image(image, normalize=True),
            "text_features": None if text is None else self.encode_text(text, normalize=True),
            "logit_scale": scale.exp() if isinstance(scale, Tensor) else 100.0,
        }

    def encode(self, tower: TowerName, inputs: Tensor, normalize: bool = False) -> Float[Tensor, "N J"]:
        """Computes embeddings in the mode that the caller has set."""
        weight = next(self.model.parameters())
        inputs = inputs.to(weight.device, weight.dtype if inputs.is_floating_point() else None)
        found = self._encode[tower](inputs)
        return F.normalize(found, dim=-1) if normalize else found

    @torch.inference_mode()
    def embed(self, tower: TowerName, inputs: Tensor, batch_size: int) -> Float[Tensor, "N J"]:
        """Computes normalised embeddings in evaluation mode, in float32 at least."""
        with evaluation_mode(self.model):
            return torch.cat([normalised(self.encode(tower, part), tower) for part in inputs.split(batch_size)])


def _encoders(model: DualEncoder | nn.Module) -> dict[TowerName, Callable[[Tensor], Tensor]]:
    if isinstance(model, DualEncoder):
        return {
            "image": lambda images: model.embed("image", images),
            "text": lambda tokens: model.embed("text", tokens),
        }
    image, text = getattr(model, "encode_image", None), getattr(model, "encode_text", None)
    if callable(image) and callable(text):
        return {"image": image, "text": text}
    if is_known(model):
        towers = towers_of(model)
        return {"image": towers.encode_image, "text": towers.encode_text}
    raise UnsupportedModelError(
        f"model must be a DualEncoder, have encode_image and encode_text, or be of a registered type; found "
        f"{type(model).__qualname__}. Register its towers with mope.register_towers, or give it these methods."
    )
