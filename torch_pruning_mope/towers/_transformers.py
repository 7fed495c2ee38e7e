"""Models of Hugging Face's transformers, an optional package: everything here goes by the full names of its types."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ._checks import check_tokens
from ._discover import Found, register_channels
from ._opaque import OpaqueTower
from ._prunable import Channels
from ._registry import Towers, register_towers

_MODELS = "transformers.models."


@register_channels(
    *(
        f"{_MODELS}{name}"
        for name in (
            "clip.modeling_clip.CLIPMLP",
            "siglip.modeling_siglip.SiglipMLP",
            "siglip2.modeling_siglip2.Siglip2MLP",
            "chinese_clip.modeling_chinese_clip.ChineseCLIPVisionMLP",
            "altclip.modeling_altclip.AltCLIPMLP",
            "m2m_100.modeling_m2m_100.M2M100EncoderLayer",
        )
    )
)
def _units_of_mlp(module: Any) -> Found:
    return [("neurons", Channels((module.fc1,), module.fc2))]


@register_channels(
    *(
        f"{_MODELS}{name}"
        for name in (
            "clip.modeling_clip.CLIPAttention",
            "siglip.modeling_siglip.SiglipAttention",
            "siglip2.modeling_siglip2.Siglip2Attention",
            "chinese_clip.modeling_chinese_clip.ChineseCLIPVisionAttention",
            "altclip.modeling_altclip.AltCLIPAttention",
            "m2m_100.modeling_m2m_100.M2M100Attention",
        )
    )
)
def _units_of_attention(module: Any) -> Found:
    # These count their heads by what is left of the projections, and keep their scale: nothing need be swapped.
    sources = (module.q_proj, module.k_proj, module.v_proj)
    return [("head", Channels(sources, module.out_proj, module.head_dim, can_be_empty=False))]


@register_channels(
    *(
        f"{_MODELS}{name}"
        for name in (
            "bert.modeling_bert.BertLayer",
            "roberta.modeling_roberta.RobertaLayer",
            "xlm_roberta.modeling_xlm_roberta.XLMRobertaLayer",
            "altclip.modeling_altclip.AltRobertaLayer",
            "chinese_clip.modeling_chinese_clip.ChineseCLIPTextLayer",
        )
    )
)
def _units_of_bert(module: Any) -> Found:
    own, output = module.attention.self, module.attention.output.dense
    return [
        ("head", Channels((own.query, own.key, own.value), output, own.attention_head_size, can_be_empty=False)),
        ("neurons", Channels((module.intermediate.dense,), module.output.dense)),
    ]


@register_channels(f"{_MODELS}t5.modeling_t5.T5Block", f"{_MODELS}mt5.modeling_mt5.MT5Block")
def _units_of_t5_block(module: Any) -> Found:  # noqa: ARG001
    return []  # the parts of one layer have theirs


@register_channels(f"{_MODELS}t5.modeling_t5.T5DenseGatedActDense", f"{_MODELS}mt5.modeling_mt5.MT5DenseGatedActDense")
def _units_of_gated(module: Any) -> Found:
    return [("neurons", Channels((module.wi_0, module.wi_1), module.wo))]


@register_channels(f"{_MODELS}t5.modeling_t5.T5DenseActDense", f"{_MODELS}mt5.modeling_mt5.MT5DenseActDense")
def _units_of_dense(module: Any) -> Found:
    return [("neurons", Channels((module.wi,), module.wo))]


def holds_positions(module: nn.Module) -> bool:
    """Whether a layer makes the relative positions that the layers after it use."""
    return any(name.rpartition(".")[2] == "relative_attention_bias" for name, _ in module.named_modules())


@register_towers(
    f"{_MODELS}clip.modeling_clip.CLIPModel",
    f"{_MODELS}siglip.modeling_siglip.SiglipModel",
)
def _clip(model: Any) -> Towers:
    return _towers(model, lambda tokens: model.get_text_features(input_ids=tokens), _plain_images(model))


@register_towers(
    f"{_MODELS}chinese_clip.modeling_chinese_clip.ChineseCLIPModel",
    f"{_MODELS}altclip.modeling_altclip.AltCLIPModel",
)
def _with_padding(model: Any) -> Towers:
    padding = model.config.text_config.pad_token_id

    def encode(tokens: Tensor) -> Any:
        return model.get_text_features(input_ids=tokens, attention_mask=tokens.ne(padding).long())

    return _towers(model, encode, _plain_images(model))


@register_towers(f"{_MODELS}siglip2.modeling_siglip2.Siglip2Model")
def _siglip2(model: Any) -> Towers:
    """The variant of variable sizes, here of one: square images of as many patches as it has positions."""
    config = model.config.vision_config
    side = int(config.num_patches**0.5)

    def encode(images: Tensor) -> Any:
        patches = images.unfold(2, config.patch_size, config.patch_size).unfold(3, config.patch_size, config.patch_size)
        patches = patches.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)
        return model.get_image_features(
            pixel_values=patches,
            pixel_attention_mask=torch.ones(patches.shape[:2], dtype=torch.int32, device=images.device),
            spatial_shapes=torch.tensor([[side, side]], device="cpu").expand(images.shape[0], -1),
        )

    return _towers(
        model,
        lambda tokens: model.get_text_features(input_ids=tokens),
        encode,
        size=side * int(config.patch_size),
        # An Embedding that is resized rather than called.
        more_parameters=lambda: [(model.vision_model.embeddings.position_embedding.weight, 1)],
    )


def _plain_images(model: Any) -> Callable[[Tensor], Any]:
    return lambda images: model.get_image_features(pixel_values=images)


def _towers(
    model: Any,
    text: Callable[[Tensor], Any],
    image: Callable[[Tensor], Any],
    *,
    size: int | None = None,
    more_parameters: Callable[[], Sequence[tuple[nn.Parameter, int]]] = lambda: (),
) -> Towers:
    vision, language = model.config.vision_config, model.config.text_config
    side = size or int(vision.image_size)
    shape = (int(vision.num_channels), side, side)
    length = min(int(language.max_position_embeddings), 77)
    if language.model_type == "altclip_text_model":  # its positions begin after the padding's
        length = min(length, int(language.max_position_embeddings) - 1 - int(language.pad_token_id))

    def encode_image(images: Tensor) -> Tensor:
        return _pooled(image(images.to(model.dtype)))

    def encode_text(tokens: Tensor) -> Tensor:
        return _pooled(text(tokens))

    def example_image() -> Tensor:
        return torch.zeros(1, *shape, device=model.device, dtype=model.dtype)

    def example_tokens() -> Tensor:
        return torch.ones(1, length, dtype=torch.long, device=model.device)

    def check_images(images: Tensor) -> None:
        if tuple(images.shape[1:]) != shape:
            raise ValueError(
                f"images must be {list(shape)} each; found {list(images.shape[1:])}. Models that take images of several sizes "
                "are scored and pruned at one: resize them."
            )

    return Towers(
        image=OpaqueTower(
            model.vision_model, encode_image, example_image, check=check_images, more_parameters=more_parameters
        ),
        text=OpaqueTower(
            model.text_model,
            encode_text,
            example_tokens,
            check=lambda tokens: check_tokens(tokens, language.vocab_size, language.max_position_embeddings),
        ),
        encode_image=encode_image,
        encode_text=encode_text,
        image_shape=shape,
        context_length=length,
    )


def _pooled(found: Any) -> Tensor:
    """The embedding, which newer versions return among others."""
    pooled: Tensor = found if isinstance(found, Tensor) else found.pooler_output
    return pooled
