"""Normalised embeddings of any dual encoder: wrapped, pruned, folded, or as its library built it."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .._state import evaluation_mode
from ..dual_encoder import DualEncoder
from ..encoder import TowerName
from ..errors import UnsupportedModelError
from ..metrics import normalised
from ..towers import is_known, towers_of


class Embedder:
    """Runs both towers of a model in evaluation mode, without gradients; the model is left as it is."""

    def __init__(self, model: DualEncoder | nn.Module) -> None:
        self.model: nn.Module = model.model if isinstance(model, DualEncoder) else model
        self._encode = _encoders(model)
        first = next(self.model.parameters())
        self.device, self._dtype = first.device, first.dtype

    def raw(self, tower: TowerName, inputs: Tensor) -> Float[Tensor, "N J"]:
        """Returns embeddings as the model returns them, in the mode that the caller has set."""
        inputs = inputs.to(self.device, self._dtype if inputs.is_floating_point() else None)
        return self._encode[tower](inputs)

    @torch.inference_mode()
    def __call__(self, tower: TowerName, inputs: Tensor, batch_size: int) -> Float[Tensor, "N J"]:
        """Computes normalised embeddings, in float32 at least."""
        with evaluation_mode(self.model):
            return torch.cat([normalised(self.raw(tower, part), tower) for part in inputs.split(batch_size)])


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
