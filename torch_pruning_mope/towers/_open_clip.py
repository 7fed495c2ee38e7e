"""open_clip's native models: ``CLIP`` and ``CustomTextCLIP`` with a ``VisionTransformer`` and a ``TextTransformer``."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.transformer import (
    CustomResidualAttentionBlock,
    LayerScale,
    ResidualAttentionBlock,
    TextTransformer,
    Transformer,
    VisionTransformer,
    text_global_pool,
)
from torch import Tensor, nn

from ..errors import UnsupportedModelError
from ._registry import Towers, register_towers
from ._sublayers import AttentionSublayer, FeedForwardSublayer, Stream
from ._tower import Block, Tower


def _require(module: Any, kind: type, what: str) -> None:
    if type(module) is not kind:
        raise UnsupportedModelError(
            f"{what} must be an open_clip {kind.__qualname__}; found {type(module).__qualname__}. Other encoders are not "
            "supported yet: write a torch_pruning_mope.Tower for it."
        )


def _block(module: Any) -> Block:
    if type(module) not in {ResidualAttentionBlock, CustomResidualAttentionBlock}:
        raise UnsupportedModelError(
            f"a block must be an open_clip ResidualAttentionBlock; found {type(module).__qualname__}. Write a "
            "torch_pruning_mope.Tower for this encoder."
        )
    scale: nn.Module = module.ls_1
    if not isinstance(getattr(module, "ln_attn", nn.Identity()), nn.Identity):
        scale = nn.Sequential(module.ln_attn, module.ls_1)
    *first, output = module.mlp
    if any(isinstance(part, nn.LayerNorm) for part in first):
        raise UnsupportedModelError(
            "an MLP must have no norm between its layers (open_clip's scale_fc), because removing neurons would then "
            "change the others; this is not supported yet."
        )
    return Block(
        module,
        AttentionSublayer(module.ln_1, module.attn, scale),
        FeedForwardSublayer(module.ln_2, nn.Sequential(*first), output, module.ls_2),
    )


def _blocks(transformer: Transformer) -> list[Block]:
    return [_block(module) for module in transformer.resblocks]


def _gammas(transformer: Transformer) -> list[tuple[nn.Parameter, int]]:
    return [(module.gamma, 0) for module in transformer.modules() if isinstance(module, LayerScale)]


class _OpenClipVision(Tower):
    """``VisionTransformer`` with a class token or average pooling."""

    def __init__(self, visual: Any) -> None:
        _require(visual, VisionTransformer, "the image encoder")
        _require(visual.transformer, Transformer, "the image encoder's transformer")
        if visual.attn_pool is not None or visual.pool_type not in {"tok", "avg"}:
            found = repr(visual.pool_type) if visual.attn_pool is None else "an attentional pool"
            raise UnsupportedModelError(
                f"the image encoder must pool its class token or the average of its tokens; found {found}, which is not "
                "supported yet."
            )
        self._visual = visual

    def stem(self, inputs: Tensor) -> Stream:
        """Patches, class token, positions and the first norm."""
        visual = self._visual
        x: Tensor = visual._embeds(inputs.to(visual.conv1.weight.dtype))
        pooled = torch.zeros(len(x), dtype=torch.long, device=x.device) if visual.pool_type == "tok" else None
        return Stream(x, None, pooled)

    @property
    def blocks(self) -> Sequence[Block]:
        """The resblocks."""
        return _blocks(self._visual.transformer)

    def readout(self, stream: Stream) -> Float[Tensor, "N J"]:
        """Norm, pool and projection; the class token stays first in a narrowed stream."""
        pooled: Tensor = self._visual._pool(stream.x)[0]
        return pooled if self._visual.proj is None else pooled @ self._visual.proj

    @property
    def block_list(self) -> nn.ModuleList:
        """The resblocks."""
        blocks: nn.ModuleList = self._visual.transformer.resblocks
        return blocks

    @property
    def joint_parameters(self) -> Sequence[tuple[nn.Parameter, int]]:
        """Class token, positions, projection and layer scales."""
        visual = self._visual
        found = [(visual.class_embedding, 0), (visual.positional_embedding, 1), (visual.proj, 0)]
        found += _gammas(visual.transformer)
        return [(parameter, dim) for parameter, dim in found if parameter is not None]


class _OpenClipText(Tower):
    """The native text transformer, whether its parts hang on the model (``CLIP``) or on ``model.text``.

    Args:
        owner: The module that holds the parts.
        pool_type: ``argmax``, ``eos``, ``first`` or ``last``.
        eos_id: The end-of-text id for ``eos``.
    """

    def __init__(self, owner: Any, pool_type: str, eos_id: int | None) -> None:
        _require(owner.transformer, Transformer, "the text encoder's transformer")
        if getattr(owner, "cls_emb", None) is not None or getattr(owner, "use_pad_mask", False):
            raise UnsupportedModelError(
                "the text encoder must have neither an appended class token nor a padding mask (CoCa has); not supported "
                "yet."
            )
        if pool_type not in {"argmax", "eos", "first", "last"}:
            raise UnsupportedModelError(f"text pool_type must be argmax, eos, first or last; found {pool_type!r}.")
        self._owner = owner
        self._pool_type = pool_type
        self._eos_id = eos_id

    def stem(self, inputs: Tensor) -> Stream:
        """Token embeddings and positions; shorter inputs than the context are welcome."""
        owner = self._owner
        dtype = owner.transformer.get_cast_dtype()
        length = inputs.shape[1]
        x = owner.token_embedding(inputs).to(dtype) + owner.positional_embedding[:length].to(dtype)
        mask = owner.attn_mask
        return Stream(x, None if mask is None else mask[:length, :length].to(dtype), self._pooled(inputs))

    def _pooled(self, inputs: Tensor) -> Int[Tensor, "N"]:
        """Asks open_clip's own pooling which token it takes, by pooling the positions."""
        positions = torch.arange(inputs.shape[1], device=inputs.device).expand_as(inputs)
        pooled: Tensor = text_global_pool(positions[..., None], inputs, self._pool_type, eos_token_id=self._eos_id)
        return pooled[:, 0]

    @property
    def blocks(self) -> Sequence[Block]:
        """The resblocks."""
        return _blocks(self._owner.transformer)

    def readout(self, stream: Stream) -> Float[Tensor, "N J"]:
        """Norm, the pooled token, projection."""
        pooled: Tensor = self._owner.ln_final(stream.narrow().x[:, 0])
        projection = self._owner.text_projection
        if projection is None:
            return pooled
        result: Tensor = projection(pooled) if isinstance(projection, nn.Linear) else pooled @ projection
        return result

    @property
    def block_list(self) -> nn.ModuleList:
        """The resblocks."""
        blocks: nn.ModuleList = self._owner.transformer.resblocks
        return blocks

    @property
    def joint_parameters(self) -> Sequence[tuple[nn.Parameter, int]]:
        """Positions, layer scales and, where it is a bare parameter, the projection."""
        projection = self._owner.text_projection
        found = [(self._owner.positional_embedding, 1), *_gammas(self._owner.transformer)]
        return [*found, (projection, 0)] if isinstance(projection, nn.Parameter) else found

    def lengths(self, inputs: Tensor) -> Int[Tensor, "N"] | None:
        """Under a causal mask nothing after the pooled token can reach it."""
        return None if self._owner.attn_mask is None else self._pooled(inputs) + 1

    def check_inputs(self, inputs: Tensor) -> None:
        """Token ids in range, and an end-of-text token in every caption.

        Raises:
            ValueError: Otherwise.
        """
        if inputs.ndim != 2 or inputs.is_floating_point():
            raise ValueError(f"tokens must be integer ids [N, T]; found {inputs.dtype} of shape {tuple(inputs.shape)}.")
        vocabulary = self._owner.token_embedding.num_embeddings
        context = self._owner.positional_embedding.shape[0]
        if inputs.shape[1] > context or inputs.min() < 0 or inputs.max() >= vocabulary:
            raise ValueError(
                f"tokens must be ids below {vocabulary}, at most {context} a caption; found ids {int(inputs.min())} to "
                f"{int(inputs.max())}, {inputs.shape[1]} a caption. Use the tokenizer of this model."
            )
        if self._pool_type == "argmax":
            # CLIP pools the highest id, which its tokenizers give to the end-of-text token alone.
            bad = (inputs.amax(1) != inputs.max()) | (inputs.amax(1) == inputs.amin(1))
        elif self._pool_type == "eos":
            bad = ~inputs.eq(self._eos_id or 0).any(1)
        else:
            return
        if bad.any():
            raise ValueError(
                f"every caption must hold an end-of-text token, which the text tower pools; {int(bad.sum())} of {len(bad)} "
                f"have none (first: caption {int(bad.nonzero()[0])}). Use the tokenizer of this model, and let it truncate."
            )


@register_towers(CLIP)
def _clip(model: Any) -> Towers:
    return _towers(model, _OpenClipText(model, model.text_pool_type, getattr(model, "text_eos_id", None)))


@register_towers(CustomTextCLIP)
def _custom_text_clip(model: Any) -> Towers:
    _require(model.text, TextTransformer, "the text encoder")
    return _towers(model, _OpenClipText(model.text, model.text.pool_type, getattr(model.text, "eos_id", None)))


def _towers(model: Any, text: _OpenClipText) -> Towers:
    vision = _OpenClipVision(model.visual)
    height, width = model.visual.image_size
    return Towers(
        image=vision,
        text=text,
        encode_image=lambda images: model.encode_image(images.to(model.visual.conv1.weight.dtype)),
        encode_text=model.encode_text,
        image_shape=(model.visual.conv1.in_channels, height, width),
        context_length=model.context_length,
    )
