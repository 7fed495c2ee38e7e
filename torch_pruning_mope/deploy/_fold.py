"""Models in deployment form."""

import copy
from typing import Any

import torch
from open_clip.model import CLIP
from open_clip.transformer import TextTransformer
from torch import nn

from ..encoder import EncoderCore
from ..errors import UnsupportedModelError
from ..surgery import PrunableAttention
from ..towers import Tower, Towers, register_towers
from ..towers._open_clip import OpenClipText, OpenClipVision
from ..towers._timm import TimmVit
from ._attention import fold_attention, fold_transformers_attention
from ._blocks import Narrowing, fold_blocks
from ._empty import replace_dropout, replace_empty
from ._text import FoldedClip, FoldedTextTransformer


def fold(model: nn.Module | EncoderCore) -> Any:
    """Returns a copy of a model in deployment form: the same embeddings, in less time.

    Queries, keys and values come from one matrix product, the softmax scale is in its weights, layer scales are in the layers
    before them. Sub-layers without heads or neurons are gone, with their norms; their biases are in the layer before.
    Dropout is gone. Where the embedding is made of one token, the last attention and what follows run on that token
    alone. What is not known is left as it is: a fold changes time, and embeddings by rounding alone.

    It is called as the model was (``encode_image`` and ``encode_text`` in open_clip), is in evaluation mode, needs no
    gradients, and cannot be pruned or trained further: keep the model.

    Args:
        model: A CLIP-like model, pruned or not, wrapped or not; left as it is.

    Returns:
        The copy.

    Raises:
        UnsupportedModelError: If the model, or one of its parts, is of an unknown type.
        ValueError: If weights are on the ``meta`` device.
    """
    encoder = EncoderCore(copy.deepcopy(model.model if isinstance(model, EncoderCore) else model).eval())
    encoder.check_has_weights()
    return folded_encoder(encoder).model


def folded_encoder(encoder: EncoderCore) -> EncoderCore:
    """Mutates an encoder's model: brings it into deployment form."""
    root: Any = encoder.model
    root.requires_grad_(False)
    replace_dropout(root)
    narrowed = False
    for tower in (encoder.image, encoder.text):
        if isinstance(tower, Tower) and isinstance(tower, OpenClipVision | OpenClipText | TimmVit):
            done = fold_blocks(tower, _narrowing(tower, encoder))
            narrowed |= done and isinstance(tower, OpenClipText)
    for module in list(root.modules()):
        if isinstance(module, PrunableAttention):
            fold_attention(module)
        else:
            fold_transformers_attention(module)
    replace_empty(root)
    if narrowed:
        for module in [root, *root.modules()]:
            _change_type(module)
    return encoder


@torch.no_grad()
def _narrowing(tower: Tower, encoder: EncoderCore) -> Narrowing | None:
    if isinstance(tower, OpenClipText):
        return "pooled"
    stream = tower.stem(encoder.example_inputs["images"])
    return None if stream.pooled is None or stream.pooled.any() else "first"


_NARROWING: dict[type[nn.Module], type[nn.Module]] = {CLIP: FoldedClip, TextTransformer: FoldedTextTransformer}


def _change_type(module: nn.Module) -> None:
    kind = _NARROWING.get(type(module))
    if kind is not None:
        module.__class__ = kind


@register_towers(FoldedClip)
def _refused(model: FoldedClip) -> Towers:
    raise UnsupportedModelError(
        f"model must be one that can be pruned; found {type(model).__name__}, the deployment form of another. Prune first, "
        "then fold."
    )
