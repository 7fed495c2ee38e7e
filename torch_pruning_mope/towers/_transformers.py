"""Models of Hugging Face's transformers, an optional package: everything here goes by the full names of its types."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ._discover import Found, register_channels
from ._pair import embedding_of
from ._prunable import Channels
from ._registry import Towers, register_towers
from ._structure import towers_of_features

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


@register_towers(f"{_MODELS}siglip2.modeling_siglip2.Siglip2Model")
def _siglip2(model: Any) -> Towers:
    images = _Siglip2Images(model)
    # Its positions are an Embedding that is resized, not called.
    return towers_of_features(model, images, images.shape, more_parameters=partial(_positions, model))


def _positions(model: Any) -> list[tuple[nn.Parameter, int]]:
    return [(model.vision_model.embeddings.position_embedding.weight, 1)]


class _Siglip2Images:
    """The image encoder of variable sizes, here of one: square images of as many patches as it has positions."""

    def __init__(self, model: Any) -> None:
        self._model = model
        config = model.config.vision_config
        self._side, self._patch = int(config.num_patches**0.5), int(config.patch_size)
        self.shape = (int(config.num_channels), self._side * self._patch, self._side * self._patch)

    def __call__(self, images: Tensor) -> Any:
        """Embeddings of images ``[N, C, R, R]``."""
        images = images.to(self._model.dtype)
        patches = images.unfold(2, self._patch, self._patch).unfold(3, self._patch, self._patch)
        patches = patches.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)
        found = self._model.get_image_features(
            pixel_values=patches,
            pixel_attention_mask=torch.ones(patches.shape[:2], dtype=torch.int32, device=images.device),
            spatial_shapes=torch.tensor([[self._side, self._side]], device="cpu").expand(images.shape[0], -1),
        )
        return embedding_of(found)
