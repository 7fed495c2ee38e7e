"""A model whose embeddings are whatever a test wants."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Lookup(nn.Module):
    """Images are their own embeddings; the first token of a caption says which row of a table its embedding is."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(table)

    def encode_image(self, image: Tensor) -> Tensor:
        return image

    def encode_text(self, text: Tensor) -> Tensor:
        return self.table[text[:, 0]]


def number_tokens(texts: str | Sequence[str]) -> Tensor:
    """Captions here are numbers of rows."""
    texts = [texts] if isinstance(texts, str) else texts
    return torch.tensor([[int(text), 0] for text in texts])


def noisy(images: int, captions: int, width: int = 16, noise: float = 0.9, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Double-precision embeddings, so that rounding decides on no rank: images, and captions near them, image by image."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(images, width, generator=generator, dtype=torch.double)
    spread = torch.randn(images * captions, width, generator=generator, dtype=torch.double)
    return first, first.repeat_interleave(captions, 0) + noise * spread
