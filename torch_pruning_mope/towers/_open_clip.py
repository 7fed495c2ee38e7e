"""open_clip's native models: ``CLIP`` and ``CustomTextCLIP`` with a ``VisionTransformer`` and a ``TextTransformer``."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from inspect import signature
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from .._registry import is_of
from ._checks import check_tokens
from ._discover import Found, register_channels
from ._opaque import OpaqueTower
from ._prunable import Channels
from ._registry import Towers, register_towers
from ._structure import holds_positions
from ._sublayers import AttentionSublayer, FeedForwardSublayer, Stream
from ._timm import TimmVit
from ._tower import Block, BlockTower, Tower, remove_element

_TRANSFORMER = "open_clip.transformer."
_BLOCKS = (f"{_TRANSFORMER}ResidualAttentionBlock", f"{_TRANSFORMER}CustomResidualAttentionBlock")


@register_channels(*_BLOCKS)
def _units_of_block(module: Any) -> Found:
    return [("neurons", Channels((module.mlp[0],), module.mlp[-1]))]


@register_channels("open_clip.modified_resnet.Bottleneck")
def _units_of_bottleneck(module: Any) -> Found:
    return [("neurons", Channels((module.conv1,), module.conv2)), ("neurons", Channels((module.conv2,), module.conv3))]


def _is_plain(transformer: Any) -> bool:
    """Returns whether nothing but units stands between the layers that make units and those that take them."""
    return is_of(transformer, f"{_TRANSFORMER}Transformer") and all(
        is_of(block, *_BLOCKS)
        and not (
            isinstance(block.attn, nn.MultiheadAttention)
            and (block.attn.bias_k is not None or block.attn.add_zero_attn)
        )
        and isinstance(getattr(block.attn, "norm", None) or nn.Identity(), nn.Identity)
        and not any(isinstance(part, nn.LayerNorm) for part in block.mlp)
        for block in transformer.resblocks
    )


def _block(module: Any, siblings: nn.ModuleList) -> Block:
    scale: nn.Module = module.ls_1
    if not isinstance(getattr(module, "ln_attn", nn.Identity()), nn.Identity):
        scale = nn.Sequential(module.ln_attn, module.ls_1)
    *first, output = module.mlp
    return Block(
        module,
        AttentionSublayer(module.ln_1, module.attn, scale),
        FeedForwardSublayer(module.ln_2, nn.Sequential(*first), output, module.ls_2),
        siblings,
    )


def _blocks(transformer: Any) -> list[Block]:
    return [_block(module, transformer.resblocks) for module in transformer.resblocks]


def _gammas(transformer: Any) -> list[tuple[nn.Parameter, int]]:
    return [(module.gamma, 0) for module in transformer.modules() if is_of(module, f"{_TRANSFORMER}LayerScale")]


class OpenClipVision(Tower):
    """``VisionTransformer`` with a class token or average pooling."""

    def __init__(self, visual: Any) -> None:
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
    def joint_parameters(self) -> Sequence[tuple[nn.Parameter, int]]:
        """Class token, positions, projection and layer scales."""
        visual = self._visual
        found = [(visual.class_embedding, 0), (visual.positional_embedding, 1), (visual.proj, 0)]
        found += _gammas(visual.transformer)
        return [(parameter, dim) for parameter, dim in found if parameter is not None]


class OpenClipText(Tower):
    """The native text transformer, whether its parts hang on the model (``CLIP``) or on ``model.text``."""

    def __init__(self, owner: Any, pool_type: str, eos_id: int | None) -> None:
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
        from open_clip.transformer import text_global_pool  # loaded: the model is open_clip's

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
    def joint_parameters(self) -> Sequence[tuple[nn.Parameter, int]]:
        """Positions, layer scales and, where it is a bare parameter, the projection."""
        projection = self._owner.text_projection
        found = [(self._owner.positional_embedding, 1), *_gammas(self._owner.transformer)]
        return [*found, (projection, 0)] if isinstance(projection, nn.Parameter) else found

    def lengths(self, inputs: Tensor) -> Int[Tensor, "N"] | None:
        """Under a causal mask nothing after the pooled token can reach it."""
        return None if self._owner.attn_mask is None else self._pooled(inputs) + 1

    def check_inputs(self, inputs: Tensor) -> None:
        """Token ids in range, and an end-of-text token in every caption."""
        check_tokens(inputs, self._owner.token_embedding.num_embeddings, self._owner.positional_embedding.shape[0])
        _check_end(inputs, self._pool_type, self._eos_id)


def _check_end(tokens: Tensor, pool_type: str, eos_id: int | None) -> None:
    """An end-of-text token in every caption, where one is pooled."""
    if pool_type == "argmax":
        # CLIP pools the highest id, which its tokenizers give to the end-of-text token alone.
        bad = (tokens.amax(1) != tokens.max()) | (tokens.amax(1) == tokens.amin(1))
    elif pool_type == "eos":
        bad = ~tokens.eq(eos_id or 0).any(1)
    else:
        return
    if bad.any():
        raise ValueError(
            f"every caption must hold an end-of-text token, which the text tower pools; {int(bad.sum())} of {len(bad)} "
            f"have none (first: caption {int(bad.nonzero()[0])}). Use the tokenizer of this model, and let it truncate."
        )


@register_towers("open_clip.model.CLIP")
def _clip(model: Any) -> Towers:
    pool_type, eos_id = model.text_pool_type, getattr(model, "text_eos_id", None)
    text: BlockTower = OpenClipText(model, pool_type, eos_id)
    if not _is_plain(model.transformer) or pool_type not in _POOLS:
        native = text
        text = OpaqueTower(
            model.transformer,
            model.encode_text,
            lambda: _tokens(model, model.context_length),
            more_parameters=lambda: [(model.positional_embedding, 1), *_projection(model.text_projection)],
            check=native.check_inputs,
        )
    return _towers(model, text, model.encode_image, model.encode_text, model.context_length)


@register_towers("open_clip.model.CustomTextCLIP")
def _custom_text_clip(model: Any) -> Towers:
    length = _context(model.text)
    text = _text_tower(model.text, model.encode_text, length)
    return _towers(model, text, model.encode_image, model.encode_text, length)


@register_towers("open_clip.coca_model.CoCa")
def _coca(model: Any) -> Towers:
    length = min(_context(model.text), int(model.context_length))
    encode_image, encode_text = (
        partial(model.encode_image, normalize=False),
        partial(model.encode_text, normalize=False),
    )
    text = _text_tower(model.text, encode_text, length)
    towers = _towers(model, text, encode_image, encode_text, length)

    # Before open_clip 4, logits came without the last token unless told otherwise.
    options = {"output_labels": False} if "output_labels" in signature(model.forward).parameters else {}

    def decode(images: Tensor, tokens: Tensor) -> Tensor:
        logits: Tensor = model(images, tokens, **options)["logits"]
        return logits

    def run(tokens: Tensor) -> Tensor:
        return decode(_image(model), tokens)

    decoder = _CoCaDecoder(model.text_decoder, run, lambda: _tokens(model, length), dimensions={"text_projection": 0})
    return replace(towers, decoder=decoder, decode=decode)


class _CoCaDecoder(OpaqueTower):
    """CoCa's decoder, whose self-attention and cross-attention layers run in pairs."""

    @property
    def streams(self) -> Sequence[nn.Module]:
        """None of its own: its residual width is that of the text tower."""
        return ()

    def check_output(self, output: Any) -> None:
        """Logits of all tokens are fine."""

    def delete(self, indices: Sequence[int]) -> None:
        """Mutates the model: deletes layers, each with its partner."""
        blocks, decoder = self.blocks, self.root
        pairs: list[Any] = [
            pair
            for pair in zip(decoder.resblocks, decoder.cross_attn, strict=True)  # type: ignore[arg-type]
            if any(blocks[index].module in pair for index in indices)
        ]
        for own, cross in pairs:
            remove_element(decoder.resblocks, own)
            remove_element(decoder.cross_attn, cross)


_TIMM = "open_clip.timm_model.TimmModel"
_USUAL = 77
_POOLS = {"argmax", "eos", "first", "last"}


def _text_tower(text: Any, encode: Callable[[Tensor], Tensor], length: int) -> BlockTower:
    """The tower of a text encoder of its own."""
    if not is_of(text, f"{_TRANSFORMER}TextTransformer"):
        return OpaqueTower(text, encode, lambda: _tokens(text, length), fixed=holds_positions)
    native = OpenClipText(text, text.pool_type, getattr(text, "eos_id", None))
    simple = text.cls_emb is None and not text.use_pad_mask and not text.output_tokens
    if simple and text.pool_type in _POOLS and _is_plain(text.transformer):
        return native
    return OpaqueTower(
        text, encode, lambda: _tokens(text, length), dimensions={"text_projection": 0}, check=_checks(text)
    )


def _checks(text: Any) -> Callable[[Tensor], None]:
    def check(tokens: Tensor) -> None:
        check_tokens(tokens, text.token_embedding.num_embeddings, text.context_length)
        if text.cls_emb is None:
            _check_end(tokens, text.pool_type, text.eos_id)

    return check


def _context(text: Any) -> int:
    """Tokens of a caption; Hugging Face's encoders say how many places they have, of which RoBERTa's begin after padding."""
    length = int(text.context_length or _USUAL)
    if is_of(text, "open_clip.hf_model.HFTextEncoder"):
        length = min(length - 1 - int(text.config.pad_token_id or 0), _USUAL) if text.context_length else _USUAL
    return length


def _tokens(owner: nn.Module, length: int) -> Tensor:
    return torch.ones(1, length, dtype=torch.long, device=next(owner.parameters()).device)


def _image(model: Any) -> Tensor:
    weight = next(model.visual.parameters())
    return torch.zeros(1, *_image_shape(model.visual), device=weight.device, dtype=weight.dtype)


def _image_shape(visual: Any) -> tuple[int, int, int]:
    size = visual.image_size
    height, width = size if isinstance(size, tuple | list) else (size, size)
    return 3, int(height), int(width)


def _projection(projection: Any) -> list[tuple[nn.Parameter, int]]:
    return [(projection, 0)] if isinstance(projection, nn.Parameter) else []


def _image_tower(model: Any, encode: Callable[[Tensor], Tensor]) -> BlockTower:
    visual = model.visual
    if is_of(visual, f"{_TRANSFORMER}VisionTransformer"):
        simple = visual.attn_pool is None and visual.pool_type in {"tok", "avg"} and not visual.output_tokens
        if simple and _is_plain(visual.transformer):
            return OpenClipVision(visual)
    if is_of(visual, _TIMM) and TimmVit.fits(visual):
        return TimmVit(visual, encode, lambda: _image(model))
    # A head after the trunk of a timm model projects into the joint embedding, which stays as it is.
    root = visual.trunk if is_of(visual, _TIMM) else visual
    return OpaqueTower(root, encode, lambda: _image(model), dimensions={"proj": 0})


def _towers(
    model: Any,
    text: BlockTower,
    encode_image: Callable[[Tensor], Tensor],
    encode_text: Callable[[Tensor], Tensor],
    context_length: int,
) -> Towers:
    def encode(images: Tensor) -> Any:  # the tower looks at what comes out
        return encode_image(images.to(next(model.visual.parameters()).dtype))

    return Towers(
        image=_image_tower(model, encode),
        text=text,
        encode_image=encode,
        encode_text=encode_text,
        image_shape=_image_shape(model.visual),
        context_length=context_length,
    )
