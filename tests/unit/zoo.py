"""One small random model of every family, as users would build it."""

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import open_clip
import timm
import torch
from open_clip.hf_model import HFTextEncoder
from open_clip.timm_model import TimmModel
from torch import Tensor, nn

from torch_pruning_mope import Pairs

from .models import TEXT, VISION, clip, shake, tokens_for

CONTEXT, VOCABULARY = 9, 50


def _timm(name: str, *, size: int, pool: str = "", proj: str = "linear", joint: int = 28, **options: Any) -> Any:
    """An open_clip model with a small timm tower; options that open_clip does not pass on go to timm."""
    text = {**TEXT}
    model = clip(open_clip.CustomTextCLIP, vision={"image_size": size}, text=text)
    create = timm.create_model

    def small(model_name: str, **rest: Any) -> nn.Module:
        return create(model_name, **rest, **options)

    timm.create_model = small
    try:
        model.visual = TimmModel(name, joint, image_size=size, pool=pool, proj=proj)
    finally:
        timm.create_model = create
    return model


def _siglip(**options: Any) -> Any:
    return _timm(
        "vit_base_patch16_siglip_224",
        size=32,
        pool="map",
        proj="none",
        joint=40,
        img_size=32,
        patch_size=8,
        embed_dim=40,
        depth=2,
        num_heads=4,
        **options,
    )


def _with_joint(model: Any, joint: int) -> Any:
    """The text tower of another embedding size."""
    width = model.text.text_projection.shape[0]
    model.text.text_projection = nn.Parameter(torch.randn(width, joint) / width**0.5)
    return model


def _hf_text(kind: str, **options: Any) -> Any:
    import transformers

    config = transformers.AutoConfig.for_model(kind, **options)
    model = clip(open_clip.CustomTextCLIP)
    model.text = HFTextEncoder("", 28, config=config, proj_type="mlp")
    if kind in {"roberta", "xlm-roberta"}:
        model.text.transformer.pooler = None  # as open_clip makes it where it pools by itself
    if getattr(config, "is_encoder_decoder", False):
        model.text.transformer = getattr(
            model.text.transformer, "encoder", model.text.transformer
        )  # newer ones keep it alone
    return model


_BERT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 36,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 50,
    "max_position_embeddings": CONTEXT + 3,
}
_VISION = {
    "hidden_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 56,
    "image_size": 24,
    "patch_size": 8,
}
_HF_TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 36,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 54,
    "max_position_embeddings": CONTEXT,
    "eos_token_id": VOCABULARY - 1,
    "bos_token_id": VOCABULARY - 2,
    "pad_token_id": 0,
}


def _transformers(kind: str, text: dict[str, Any], vision: dict[str, Any] | None = None, **rest: Any) -> Any:
    import transformers

    config = transformers.AutoConfig.for_model(
        kind, text_config=text, vision_config={**_VISION, **(vision or {})}, **rest
    )
    return transformers.AutoModel.from_config(config)


def _coca(pool: bool) -> Any:
    vision = {**VISION, "output_tokens": True}
    if pool:
        vision |= {"attentional_pool": True, "attn_pooler_heads": 4, "attn_pooler_queries": 5}
    else:
        vision |= {"width": 36, "head_width": 12}
    model = open_clip.CoCa(
        embed_dim=36 if pool else 28,
        vision_cfg=open_clip.CLIPVisionCfg(**vision),
        text_cfg=open_clip.CLIPTextCfg(**{**TEXT, "embed_cls": True, "output_tokens": True}),
        multimodal_cfg={"context_length": CONTEXT, "width": 36, "heads": 3, "layers": 2},
    )
    nn.init.normal_(model.text_decoder.text_projection, std=0.2)  # open_clip leaves it to checkpoints
    return model


FAMILIES: dict[str, Callable[[], Any]] = {
    "open_clip ViT": lambda: clip(),
    "open_clip ViT, attentional pool": lambda: clip(
        vision={"attentional_pool": True, "attn_pooler_heads": 4, "attn_pooler_queries": 5}
    ),
    "open_clip qk_norm": lambda: clip(vision={"qk_norm": True}, text={"qk_norm": True}),
    "open_clip scale_heads": lambda: clip(vision={"scale_heads": True}, text={"scale_heads": True}),
    "open_clip inner norms": lambda: clip(
        vision={"scale_attn_inner": True, "scale_fc": True}, text={"scale_attn_inner": True, "scale_fc": True}
    ),
    "open_clip ResNet": lambda: clip(vision={"layers": (2, 1, 1, 1), "image_size": 64, "width": 16, "head_width": 64}),
    "CoCa": lambda: _coca(False),
    "CoCa, attentional pool": lambda: _coca(True),
    "SigLIP": lambda: _with_joint(_siglip(), 40),
    "ViT of timm": lambda: _timm(
        "vit_medium_patch16_gap_256", size=32, img_size=32, patch_size=8, embed_dim=40, depth=2, num_heads=4
    ),
    "EVA02": lambda: _timm(
        "eva02_base_patch16_clip_224",
        size=32,
        img_size=32,
        patch_size=8,
        embed_dim=48,
        depth=2,
        num_heads=4,
        pool="token",
    ),
    "EVA01": lambda: _timm(
        "eva_giant_patch14_224", size=32, img_size=32, patch_size=8, embed_dim=40, depth=2, num_heads=4, pool="token"
    ),
    "EVA02-E": lambda: _timm(
        "eva02_enormous_patch14_clip_224",
        size=32,
        img_size=32,
        patch_size=8,
        embed_dim=40,
        depth=2,
        num_heads=4,
        pool="token",
    ),
    "PE-Core": lambda: _timm(
        "vit_pe_core_tiny_patch16_384",
        size=32,
        img_size=32,
        patch_size=8,
        embed_dim=48,
        depth=2,
        num_heads=4,
    ),
    "ConvNeXt": lambda: _timm("convnext_tiny", size=64, depths=(1, 2, 2, 1), dims=(16, 24, 32, 40)),
    "ConvNeXt, MLP head": lambda: _timm(
        "convnext_tiny", size=64, proj="mlp", depths=(1, 2, 2, 1), dims=(16, 24, 32, 40)
    ),
    "MobileCLIP-S": lambda: _timm(
        "fastvit_mci0",
        size=64,
        pool="avg",
        proj="",
        layers=(1, 2, 2, 1),
        embed_dims=(32, 64, 128, 256),
    ),
    "MobileCLIP-B": lambda: _timm(
        "vit_base_mci_224", size=64, img_size=64, depth=2, num_heads=4, mlp_ratio=0.2, pool="token", proj=""
    ),
    "ViTamin": lambda: _timm(
        "vitamin_small_224", size=64, img_size=64, depth=2, num_heads=4, mlp_ratio=0.2, pool="avg"
    ),
    "Swin": lambda: _timm(
        "swin_tiny_patch4_window7_224",
        size=64,
        img_size=64,
        window_size=4,
        embed_dim=24,
        depths=(2, 2),
        num_heads=(2, 4),
    ),
    "ViT, relative positions": lambda: _timm(
        "vit_relpos_medium_patch16_cls_224", size=32, img_size=32, patch_size=8, embed_dim=40, depth=2, num_heads=4
    ),
    "RoBERTa": lambda: _hf_text("roberta", **_BERT, pad_token_id=0),
    "XLM-RoBERTa": lambda: _hf_text("xlm-roberta", **_BERT, pad_token_id=0),
    "mT5": lambda: _hf_text(
        "mt5", vocab_size=VOCABULARY, d_model=36, d_kv=12, d_ff=50, num_layers=2, num_heads=3, pad_token_id=0
    ),
    "NLLB": lambda: _hf_text(
        "m2m_100",
        vocab_size=VOCABULARY,
        d_model=36,
        encoder_layers=2,
        decoder_layers=1,
        encoder_attention_heads=3,
        decoder_attention_heads=3,
        encoder_ffn_dim=50,
        decoder_ffn_dim=50,
        max_position_embeddings=CONTEXT + 3,
        pad_token_id=0,
    ),
    "transformers CLIP": lambda: _transformers("clip", _HF_TEXT, projection_dim=28),
    "transformers SigLIP": lambda: _transformers("siglip", _HF_TEXT | {"projection_size": 40}),
    "transformers SigLIP 2": lambda: _transformers("siglip2", _HF_TEXT | {"projection_size": 40}, {"num_patches": 9}),
    "transformers Chinese-CLIP": lambda: _transformers("chinese_clip", _BERT | {"pad_token_id": 0}, projection_dim=28),
    "transformers AltCLIP": lambda: _transformers(
        "altclip", _BERT | {"pad_token_id": 0, "project_dim": 36}, projection_dim=28
    ),
}

DISTINCT = [
    "open_clip ViT", "open_clip ResNet", "CoCa, attentional pool", "EVA02-E", "MobileCLIP-S", "Swin", "mT5",
    "transformers SigLIP",
]  # fmt: skip
"""One for each way to run a tower, and each type of output layer and of what stands before it."""


@cache
def _built(name: str) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = FAMILIES[name]()
        shake(model)
        for module in model.modules():  # running statistics that are not those of a fresh model
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.uniform_(-0.3, 0.3)
                module.running_var.uniform_(0.5, 1.5)
    return model.eval()


def build(name: str) -> Any:
    """A fresh copy of a family's model."""
    return copy.deepcopy(_built(name))


def pairs_of(encoder: Any, count: int = 6, seed: int = 0) -> Pairs:
    """Random pairs that fit a wrapped model."""
    shape = encoder.example_inputs["images"].shape[1:]
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, *shape, generator=generator)
    return Pairs(images, tokens(count, seed))


def tokens(count: int = 6, seed: int = 0) -> Tensor:
    return tokens_for(count, context=CONTEXT, vocabulary=VOCABULARY, seed=seed)
