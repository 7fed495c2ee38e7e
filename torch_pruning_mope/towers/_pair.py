"""Two encoders given apart, as one model."""

import math
from typing import Any

import torch
from torch import Tensor, nn


class TwoEncoders(nn.Module):
    """A dual encoder of two modules, each of which maps a batch to one embedding per input."""

    def __init__(
        self,
        image_encoder: nn.Module,
        text_encoder: nn.Module,
        *,
        image_size: int | tuple[int, int],
        context_length: int,
        channels: int = 3,
        logit_scale: float = 100.0,
    ) -> None:
        super().__init__()
        self.image_encoder, self.text_encoder = image_encoder, text_encoder
        size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        self.image_shape = (channels, *size)
        self.context_length = context_length
        weight = next(self.parameters())
        self.logit_scale = nn.Parameter(torch.tensor(math.log(logit_scale), device=weight.device, dtype=weight.dtype))

    def encode_image(self, images: Tensor) -> Any:
        """Image embeddings, not normalised."""
        return embedding_of(self.image_encoder(images))

    def encode_text(self, tokens: Tensor) -> Any:
        """Text embeddings, not normalised."""
        padding = _padding(self.text_encoder)
        if padding is None:
            return embedding_of(self.text_encoder(tokens))
        return embedding_of(self.text_encoder(tokens, attention_mask=tokens.ne(padding).long()))

    def forward(self, images: Tensor, tokens: Tensor) -> Tensor:
        """Scaled similarities of images to texts."""
        features = [self.encode_image(images), self.encode_text(tokens)]
        image, text = (nn.functional.normalize(each, dim=-1) for each in features)
        logits: Tensor = self.logit_scale.exp() * image @ text.mT
        return logits


def embedding_of(output: Any) -> Any:
    """The embedding among what an encoder returns; the output itself where none is named."""
    for name in ("image_embeds", "text_embeds", "pooler_output"):
        found = getattr(output, name, None)
        if isinstance(found, Tensor):
            return found
    return output


def _padding(encoder: nn.Module) -> int | None:
    """The padding id of a text model of transformers, which wants to be told where it is."""
    if not any(kind.__module__ == "transformers.modeling_utils" for kind in type(encoder).__mro__):
        return None
    config: Any = encoder.config
    return getattr(config, "pad_token_id", None)
