"""Models in deployment form, the layers that stand in for empty ones, and text towers that narrow to the pooled token."""

import copy
from typing import Any

import torch
from jaxtyping import Float, Int
from open_clip.model import CLIP
from open_clip.transformer import TextTransformer, text_global_pool
from torch import Tensor, nn
from torch.nn import functional as F

from ..encoder import EncoderCore
from ..errors import UnsupportedModelError
from ..surgery import PrunableAttention
from ..towers import Tower, Towers, register_towers
from ..towers._open_clip import OpenClipText, OpenClipVision
from ..towers._timm import TimmVit
from ._attention import fold_attention, fold_transformers_attention
from ._blocks import Narrowing, fold_blocks


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


class Constant(nn.Module):
    """Stands in for a linear layer that takes no channels: it puts out its bias for every token."""

    def __init__(self, bias: Tensor) -> None:
        super().__init__()
        self.in_features, self.out_features = 0, len(bias)
        self.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., 0]`` to ``[..., D]``."""
        return self.bias.expand(*x.shape[:-1], -1)

    @property
    def weight(self) -> Tensor:
        """An empty weight; some models ask for its dtype."""
        return self.bias.new_empty(self.out_features, 0)


class Nothing(nn.Module):
    """Stands in for a linear layer that makes no channels."""

    weight: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.in_features, self.out_features = weight.shape[1], 0
        self.register_buffer("weight", weight.detach().clone(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., D]`` to ``[..., 0]``."""
        return x.new_empty(*x.shape[:-1], 0)


def replace_empty(model: nn.Module) -> None:
    """Mutates a model: replaces linear layers without channels by their constant output."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear) and not child.in_features:
                bias = torch.zeros_like(child.weight[:, 0:0].sum(1)) if child.bias is None else child.bias
                setattr(module, name, Constant(bias))
            elif isinstance(child, nn.Linear) and not child.out_features:
                setattr(module, name, Nothing(child.weight))


_TRAINING_ONLY = ("Dropout", "Dropout1d", "Dropout2d", "DropPath", "PatchDropout", "StochasticDepth")


def replace_dropout(model: nn.Module) -> None:
    """Mutates a model in evaluation mode: replaces dropout and its like by identities."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child).__name__ in _TRAINING_ONLY:
                setattr(module, name, nn.Identity())


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
        for module in root.modules():
            if (kind := _NARROWING.get(type(module))) is not None:
                module.__class__ = kind
    return encoder


@torch.no_grad()
def _narrowing(tower: Tower, encoder: EncoderCore) -> Narrowing | None:
    if isinstance(tower, OpenClipText):
        return "pooled"
    stream = tower.stem(encoder.example_inputs["images"])
    return None if stream.pooled is None or stream.pooled.any() else "first"


_NARROWING: dict[type[nn.Module], type[nn.Module]] = {CLIP: FoldedClip, TextTransformer: FoldedTextTransformer}


@register_towers(FoldedClip)
def _refused(model: FoldedClip) -> Towers:
    raise UnsupportedModelError(
        f"model must be one that can be pruned; found {type(model).__name__}, the deployment form of another. Prune first, "
        "then fold."
    )
