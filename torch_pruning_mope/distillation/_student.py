"""A dual encoder as one module whose forward encodes a batch, as data parallelism needs it."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .._state import evaluation_mode, hooked
from ..encoder import EncoderCore, TowerName
from ..towers import first_tensor
from ._loss import Encoded

TOWERS: tuple[TowerName, ...] = ("image", "text")


class Student(nn.Module):
    """Encodes images ``[I, C, R, R]`` and captions ``[N, T]``; keeps the states that leave the blocks on request."""

    def __init__(self, encoder: EncoderCore, *, hidden: bool = False) -> None:
        super().__init__()
        self.model: nn.Module = encoder.model
        self.hidden = hidden
        self._encoder = [encoder]  # no module, and its model is registered already
        # Now, and not at every batch: towers of unknown layers run their encoder to find them.
        self._blocks = numbered_blocks(encoder, TOWERS if hidden else ())

    def forward(self, images: Tensor, tokens: Tensor) -> Encoded:
        """Encodes a batch; hidden states are keyed by the numbers that blocks had when the model was wrapped."""
        encoder = self._encoder[0]
        with watched(self._blocks) as seen:
            embedded = encoder.embed("image", images), encoder.embed("text", tokens)
        bias = getattr(encoder.model, "logit_bias", None)
        bias = bias if bias is None else 1 * bias  # DDP does not see a bare parameter used
        return Encoded(*embedded, encoder.logit_scale, bias, seen if self.hidden else None)


Blocks = Mapping[str, Mapping[int, nn.Module]]


def numbered_blocks(encoder: EncoderCore, towers: Collection[TowerName]) -> Blocks:
    """Blocks by tower and by their numbers when the model was wrapped, without attention pools and the like."""
    return {
        tower: {
            number: block.module
            for number, block in zip(encoder.block_numbers(tower), encoder.towers[tower].blocks, strict=True)
            if block.siblings is not None
        }
        for tower in towers
    }


@contextmanager
def watched(blocks: Blocks) -> Iterator[dict[str, dict[int, Tensor]]]:
    """Yields a mapping, by tower and number, that fills with the blocks' outputs as towers run inside."""
    seen: dict[str, dict[int, Tensor]] = {tower: {} for tower in TOWERS}
    places = {block: (tower, number) for tower, numbered in blocks.items() for number, block in numbered.items()}

    def keep(module: nn.Module, _args: Any, _kwargs: Any, output: Any) -> None:
        tower, number = places[module]
        seen[tower][number] = first_tensor(output)

    with hooked(places, keep):
        yield seen


def has_idle(encoder: EncoderCore) -> bool:
    """True if a trained parameter has no part in the embeddings, as in CoCa's decoder, which DDP must know."""
    trained = [
        parameter
        for name, parameter in encoder.model.named_parameters()
        if parameter.requires_grad and name not in {"logit_scale", "logit_bias"}
    ]
    inputs = encoder.example_inputs
    with torch.enable_grad(), evaluation_mode(encoder.model):
        found = encoder.embed("image", inputs["images"]).sum() + encoder.embed("text", inputs["tokens"]).sum()
        if not found.requires_grad:
            return bool(trained)
        return any(each is None for each in torch.autograd.grad(found, trained, allow_unused=True))


@torch.no_grad()
def clamp_temperature(model: nn.Module, most: float = 100.0) -> None:
    """Mutates ``model``: keeps its learnt temperature within CLIP's bounds (arXiv 2103.00020, section 2.5)."""
    scale = getattr(model, "logit_scale", None)
    if isinstance(scale, nn.Parameter):
        scale.clamp_(0, float(torch.tensor(most).log()))
