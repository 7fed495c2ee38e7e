"""Small random dual encoders. Every weight is random, biases and norms too, so that a permuted weight shows."""

from typing import Any

import open_clip
import torch
from torch import Tensor, nn

from torch_pruning_mope import DualEncoder, Pairs

VISION: dict[str, Any] = {
    "image_size": 24,
    "patch_size": 8,
    "width": 40,
    "layers": 3,
    "head_width": 10,
    "mlp_ratio": 1.4,
}
TEXT: dict[str, Any] = {
    "context_length": 9,
    "vocab_size": 50,
    "width": 36,
    "heads": 3,
    "layers": 2,
    "mlp_ratio": 1.5,
    "eos_id": 49,
}


def clip(
    kind: type[nn.Module] = open_clip.CLIP,
    *,
    vision: dict[str, Any] | None = None,
    text: dict[str, Any] | None = None,
    seed: int = 0,
    **rest: Any,
) -> Any:
    """An open_clip model: 3 image layers of 4 heads and 56 neurons, 2 text layers of 3 heads and 54 neurons."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = kind(
            embed_dim=28,
            vision_cfg=open_clip.CLIPVisionCfg(**VISION | (vision or {})),
            text_cfg=open_clip.CLIPTextCfg(**TEXT | (text or {})),
            **rest,
        )
        shake(model)
    return model.eval()


def shake(model: nn.Module, size: float = 0.15) -> None:
    """Mutates ``model``: adds noise to all weights but the temperature."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("logit_"):
                parameter += size * torch.randn_like(parameter)


def tokens_for(count: int, *, context: int, vocabulary: int, seed: int = 0) -> Tensor:
    """Captions of various lengths: start, words, end of text (the highest id), zeros."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.zeros(count, context, dtype=torch.long)
    for row in range(count):
        words = 1 + row % (context - 2)
        tokens[row, 0] = vocabulary - 2
        tokens[row, 1 : 1 + words] = torch.randint(1, vocabulary - 2, (words,), generator=generator)
        tokens[row, 1 + words] = vocabulary - 1
    return tokens


def pairs_for(model: Any, count: int, *, captions: int = 1, seed: int = 0) -> Pairs:
    """Random pairs that fit an open_clip model; with several captions each, they come in no order."""
    generator = torch.Generator().manual_seed(seed)
    size = model.visual.image_size
    height, width = size if isinstance(size, tuple) else (size, size)
    images = torch.randn(count, 3, height, width, generator=generator)
    vocabulary = (model if hasattr(model, "token_embedding") else model.text).vocab_size
    tokens = tokens_for(count * captions, context=model.context_length, vocabulary=vocabulary, seed=seed)
    index = torch.arange(count).repeat(captions)
    if captions > 1:
        index = index[torch.randperm(len(index), generator=generator)]
    return Pairs(images, tokens, index)


def original_state(encoder: DualEncoder) -> dict[str, Tensor]:
    """A copy of the wrapped model's weights by name."""
    return {name: tensor.clone() for name, tensor in encoder.model.state_dict().items()}
