"""Small random dual encoders of makes that nobody registered, put together as users do."""

import copy
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

import torch_pruning_mope as mope

from .models import shake

CONTEXT, VOCABULARY, JOINT, SIZE = 9, 50, 20, 32


class TorchImages(nn.Module):
    """A Vision Transformer of torch's own layers, with a class token."""

    def __init__(self, *, batch_first: bool = True, depth: int = 2, width: int = 24, **options: Any) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, 8)
        self.token, self.places = nn.Parameter(torch.randn(width)), nn.Parameter(torch.randn(17, width))
        layer = nn.TransformerEncoderLayer(width, 4, 40, batch_first=batch_first, dropout=0.1, **options)
        self.encoder = nn.TransformerEncoder(layer, depth, nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, JOINT, bias=False)
        self.batch_first = batch_first

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).mT
        x = torch.cat([self.token.expand(len(x), 1, -1), x], 1) + self.places
        x = self.encoder(x) if self.batch_first else self.encoder(x.transpose(0, 1)).transpose(0, 1)
        out: Tensor = self.head(x[:, 0])
        return out


class TorchTexts(nn.Module):
    """A text encoder of torch's own layers; the mean of what is no padding, or the last token under a causal mask."""

    def __init__(self, *, causal: bool = False, width: int = 24, **options: Any) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(VOCABULARY, width), nn.Embedding(CONTEXT, width)
        layer = nn.TransformerEncoderLayer(width, 3, 36, batch_first=True, dropout=0.0, **options)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, JOINT)
        self.causal = causal

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.places(torch.arange(tokens.shape[1], device=tokens.device))
        if self.causal:
            mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1], device=tokens.device, dtype=x.dtype)
            x = self.encoder(x, mask=mask, is_causal=True)
            pooled = x[torch.arange(len(x), device=x.device), tokens.argmax(1)]
        else:
            words = tokens.ne(0)
            x = self.encoder(x, src_key_padding_mask=~words)
            pooled = (x * words[..., None]).sum(1) / words.sum(1, keepdim=True)
        out: Tensor = self.head(pooled)
        return out


class Decoder(nn.Module):
    """Learnt queries that attend to tokens through torch's decoder layers."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.patches, self.queries = nn.Conv2d(3, width, 8, 8), nn.Parameter(torch.randn(3, width))
        layer = nn.TransformerDecoderLayer(width, 4, 40, batch_first=True, norm_first=True)
        self.decoder = nn.TransformerDecoder(layer, 2)
        self.head = nn.Linear(width, JOINT)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).mT
        out: Tensor = self.head(self.decoder(self.queries.expand(len(x), -1, -1), x).mean(1))
        return out


class Pooled(nn.Module):
    """A model of transformers with a pool and a projection."""

    def __init__(self, model: Any, width: int, pool: str = "first", *, texts: bool = True) -> None:
        super().__init__()
        self.model, self.pool, self.texts = model, pool, texts
        self.head = nn.Linear(width, JOINT, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        if self.texts:
            words = inputs.ne(0)
            x = self.model(input_ids=inputs, attention_mask=words.long())[0]
            pooled = x[:, 0] if self.pool == "first" else (x * words[..., None]).sum(1) / words.sum(1, keepdim=True)
        else:
            x = self.model(pixel_values=inputs)[0]
            pooled = x.flatten(2).mean(2) if x.ndim == 4 else x[:, 0] if self.pool == "first" else x.mean(1)
        out: Tensor = self.head(pooled)
        return out


class Lstm(nn.Module):
    """A text encoder that cannot be pruned."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.tokens, self.lstm = nn.Embedding(VOCABULARY, width), nn.LSTM(width, width, batch_first=True)
        self.head = nn.Linear(width, JOINT)

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.head(self.lstm(self.tokens(tokens))[0][:, -1])
        return out


class _OpenAiBlock(nn.Module):
    def __init__(self, width: int, heads: int, mask: Tensor | None) -> None:
        super().__init__()
        self.attn, self.ln_1 = nn.MultiheadAttention(width, heads), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 40), nn.GELU(), nn.Linear(40, width))
        self.ln_2, self.attn_mask = nn.LayerNorm(width), mask

    def forward(self, x: Tensor) -> Tensor:
        y = self.ln_1(x)
        mask = None if self.attn_mask is None else self.attn_mask.to(dtype=x.dtype, device=x.device)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        out: Tensor = x + self.mlp(self.ln_2(x))
        return out


class _OpenAiVision(nn.Module):
    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.input_resolution = SIZE
        self.conv1 = nn.Conv2d(3, width, 8, 8, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.positional_embedding = nn.Parameter(torch.randn(17, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = nn.ModuleDict(
            {"resblocks": nn.Sequential(*(_OpenAiBlock(width, 4, None) for _ in range(2)))}
        )
        self.proj = nn.Parameter(torch.randn(width, JOINT))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x).flatten(2).mT
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], 1) + self.positional_embedding
        x = self.transformer["resblocks"](self.ln_pre(x).permute(1, 0, 2)).permute(1, 0, 2)
        out: Tensor = self.ln_post(x[:, 0]) @ self.proj
        return out


class OpenAiClip(nn.Module):
    """As in the ``clip`` package: tokens in the second place, parts of the text tower on the model itself."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.context_length, self.vocab_size = CONTEXT, VOCABULARY
        self.visual = _OpenAiVision()
        mask = torch.full((CONTEXT, CONTEXT), float("-inf")).triu_(1)
        self.transformer = nn.ModuleDict(
            {"resblocks": nn.Sequential(*(_OpenAiBlock(width, 3, mask) for _ in range(2)))}
        )
        self.token_embedding = nn.Embedding(VOCABULARY, width)
        self.positional_embedding = nn.Parameter(torch.randn(CONTEXT, width))
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.randn(width, JOINT))
        self.logit_scale = nn.Parameter(torch.tensor(2.6))

    def encode_image(self, image: Tensor) -> Tensor:
        out: Tensor = self.visual(image)
        return out

    def encode_text(self, text: Tensor) -> Tensor:
        x = self.token_embedding(text) + self.positional_embedding
        x = self.ln_final(self.transformer["resblocks"](x.permute(1, 0, 2)).permute(1, 0, 2))
        out: Tensor = x[torch.arange(len(x)), text.argmax(-1)] @ self.text_projection
        return out


def _timm(name: str, **options: Any) -> nn.Module:
    import timm

    return timm.create_model(name, pretrained=False, num_classes=JOINT, **options)


def _mixer() -> nn.Module:
    from timm.models.mlp_mixer import MlpMixer

    return MlpMixer(num_classes=JOINT, img_size=SIZE, patch_size=8, num_blocks=2, embed_dim=24)


_VIT = {"img_size": SIZE, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 4}
_TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 36,
    "max_position_embeddings": CONTEXT + 3,
    "pad_token_id": 0,
}
_VISION = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "image_size": SIZE,
    "patch_size": 8,
}
_SWIN = {"image_size": SIZE, "patch_size": 2, "embed_dim": 12, "depths": [1, 2], "num_heads": [2, 4], "window_size": 4}
_CONVNEXT = {"hidden_sizes": [8, 12, 16, 24], "depths": [1, 1, 2, 1], "image_size": SIZE}


def _hf(kind: str, pool: str = "first", width: int = 24, *, texts: bool = True, **options: Any) -> nn.Module:
    import transformers

    config = transformers.AutoConfig.for_model(kind, **options)
    model = transformers.T5EncoderModel(config) if kind == "t5" else transformers.AutoModel.from_config(config)
    return Pooled(model, width, pool, texts=texts)


def _whole(kind: str, text: dict[str, Any], vision: dict[str, Any], **rest: Any) -> Any:
    import transformers

    config = transformers.AutoConfig.for_model(kind, text_config=text, vision_config=vision, **rest)
    return transformers.AutoModel.from_config(config)


def _vision_text() -> Any:
    import transformers

    vision = transformers.AutoConfig.for_model("vit", **_VISION)
    text = transformers.AutoConfig.for_model("bert", **_TEXT)
    config = transformers.VisionTextDualEncoderConfig.from_vision_text_configs(vision, text, projection_dim=JOINT)
    return transformers.VisionTextDualEncoderModel(config)


TEXTS: dict[str, Callable[[], nn.Module]] = {
    "torch, post-norm": TorchTexts,
    "torch, pre-norm, causal": lambda: TorchTexts(causal=True, norm_first=True),
    "BERT": lambda: _hf("bert", **_TEXT),
    "DistilBERT": lambda: _hf(
        "distilbert",
        vocab_size=VOCABULARY,
        dim=24,
        n_layers=2,
        n_heads=3,
        hidden_dim=36,
        max_position_embeddings=CONTEXT,
    ),
    "RoBERTa": lambda: _hf("roberta", "mean", **_TEXT),
    "T5": lambda: _hf(
        "t5", "mean", vocab_size=VOCABULARY, d_model=24, d_kv=8, d_ff=36, num_layers=2, num_heads=3, pad_token_id=0
    ),
    "ModernBERT": lambda: _hf("modernbert", **_TEXT, cls_token_id=1, sep_token_id=2, bos_token_id=1, eos_token_id=2),
    "MPNet": lambda: _hf("mpnet", "mean", **_TEXT),
    "ALBERT": lambda: _hf("albert", embedding_size=16, **_TEXT),
    "ELECTRA": lambda: _hf("electra", embedding_size=16, **_TEXT),
    "DeBERTa v2": lambda: _hf("deberta-v2", **_TEXT),
    "Qwen 2, grouped keys": lambda: _hf(
        "qwen2", "mean", **{**_TEXT, "num_attention_heads": 4, "num_key_value_heads": 2}
    ),
    "LSTM": Lstm,
}
_ONCE = ("Qwen 2, grouped keys", "LSTM")
IMAGES: dict[str, Callable[[], nn.Module]] = {
    "torch, post-norm": TorchImages,
    "torch, pre-norm": lambda: TorchImages(norm_first=True),
    "torch, sequence first": lambda: TorchImages(batch_first=False, activation="gelu"),
    "torch decoder": Decoder,
    "timm ViT": lambda: _timm("vit_tiny_patch16_224", **_VIT),
    "timm DeiT III": lambda: _timm("deit3_small_patch16_224", **_VIT),
    "timm BEiT v2": lambda: _timm("beitv2_base_patch16_224", **_VIT),
    "timm EVA02": lambda: _timm("eva02_tiny_patch14_224", **{**_VIT, "embed_dim": 48}),
    "timm Swin V2": lambda: _timm(
        "swinv2_tiny_window8_256",
        img_size=SIZE,
        window_size=4,
        patch_size=2,
        embed_dim=12,
        depths=(1, 2),
        num_heads=(2, 4),
    ),
    "timm ConvNeXt V2": lambda: _timm("convnextv2_atto", depths=(1, 1, 2, 1), dims=(8, 12, 16, 24)),
    "timm CaiT": lambda: _timm("cait_xxs24_224", **_VIT),
    "timm XCiT": lambda: _timm("xcit_nano_12_p16_224", **_VIT),
    "timm MLP-Mixer": lambda: _mixer(),
    "timm ResNet": lambda: _timm("resnet18", channels=(8, 12, 16, 24), stem_width=8, layers=(1, 1, 1, 1)),
    "timm MobileNet V3": lambda: _timm("mobilenetv3_small_050"),
    "timm DINOv2 with registers": lambda: _timm("vit_giant_patch14_reg4_dinov2", **_VIT),
    "DINOv2": lambda: _hf("dinov2", texts=False, mlp_ratio=2, **_VISION),
    "DINOv2 with registers": lambda: _hf("dinov2_with_registers", texts=False, mlp_ratio=2, **_VISION),
    "DINOv3": lambda: _hf("dinov3_vit", width=32, texts=False, **{**_VISION, "hidden_size": 32}),
    "ViT": lambda: _hf("vit", texts=False, **_VISION),
    "DeiT": lambda: _hf("deit", texts=False, **_VISION),
    "BEiT": lambda: _hf("beit", "mean", texts=False, use_relative_position_bias=True, **_VISION),
    "ConvNeXt": lambda: _hf("convnext", texts=False, **_CONVNEXT),
    "Swin": lambda: _hf("swin", "mean", texts=False, **_SWIN),
    "ResNet": lambda: _hf("resnet", texts=False, hidden_sizes=[8, 12, 16, 24], depths=[1, 1, 1, 1], embedding_size=8),
    "timm NaFlexViT, gated": lambda: _timm(
        "naflexvit_base_patch16_gap",
        attn_gated=True,
        patch_size=8,
        embed_dim=48,
        depth=2,
        num_heads=4,
        pos_embed_grid_size=(4, 4),
    ),
}
_CLIP_TEXT = {
    **_TEXT,
    "max_position_embeddings": CONTEXT,
    "eos_token_id": VOCABULARY - 1,
    "bos_token_id": VOCABULARY - 2,
}
WHOLE: dict[str, Callable[[], Any]] = {
    "VisionTextDualEncoder": _vision_text,
    "MetaCLIP 2": lambda: _whole("metaclip_2", _CLIP_TEXT, _VISION, projection_dim=JOINT),
    "ALIGN": lambda: _whole(
        "align",
        _TEXT,
        {"image_size": 64, "width_coefficient": 0.25, "depth_coefficient": 0.2, "hidden_dim": 40, "num_channels": 3},
        projection_dim=24,
    ),
    "CLIPSeg": lambda: _whole("clipseg", _CLIP_TEXT, _VISION, projection_dim=JOINT),
    "GroupViT": lambda: _whole(
        "groupvit",
        _CLIP_TEXT,
        {
            "hidden_size": 24,
            "intermediate_size": 40,
            "depths": [1, 2],
            "num_hidden_layers": 3,
            "num_group_tokens": [4, 0],
            "num_output_groups": [3, 0],
            "num_attention_heads": 4,
            "image_size": SIZE,
            "patch_size": 8,
            "assign_mlp_ratio": [0.5, 2],
        },
        projection_dim=JOINT,
        projection_intermediate_dim=28,
    ),
    "AIMv2": lambda: _whole("aimv2", _CLIP_TEXT, _VISION, projection_dim=JOINT),
    "OWL-ViT": lambda: _whole("owlvit", _CLIP_TEXT, _VISION, projection_dim=JOINT),
    "BLIP": lambda: _whole(
        "blip",
        {**_TEXT, "encoder_hidden_size": 24, "bos_token_id": 1, "eos_token_id": 2},
        _VISION,
        projection_dim=JOINT,
    ),
    "OpenAI's clip": OpenAiClip,
}


def _of(image: str, text: str) -> Any:
    return mope.towers.TwoEncoders(IMAGES[image](), TEXTS[text](), image_size=SIZE, context_length=CONTEXT)


_PAIRS = [(image, text) for image, text in zip(IMAGES, 3 * [text for text in TEXTS if text not in _ONCE], strict=False)]
SAME_TEXT = {f"{image} + {text}" for image, text in _PAIRS[len(TEXTS) - len(_ONCE) :]}
"""Those whose text encoder is that of an earlier one."""
MAKES: dict[str, Callable[[], Any]] = {
    **{
        f"{image} + {text}": partial(_of, image, text)
        for image, text in [*_PAIRS, *(("timm ViT", text) for text in _ONCE)]
    },
    **WHOLE,
}


@cache
def _built(name: str) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MAKES[name]()
        shake(model)
        for module in model.modules():  # running statistics that are not those of a fresh model
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.uniform_(-0.3, 0.3)  # type: ignore[union-attr, operator]
                module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr, operator]
    return model.eval()


def build(name: str) -> Any:
    """A fresh copy of a model."""
    return copy.deepcopy(_built(name))
