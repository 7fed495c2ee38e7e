"""Small random models of the families that the examples are about, and pictures for them, for machines without a network.

Nothing here is worth a look at its numbers: it shows that the scripts run, and what they print.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import open_clip
import timm
import tokenizers
import transformers
from PIL import Image

import torch_pruning_mope as mope

TEXT = {"context_length": 32, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 2}
VISION = {"image_size": 32, "layers": 2, "width": 32, "patch_size": 8, "head_width": 8}


def scenes(folder: Path, count: int = 48) -> Path:
    """Writes pictures of emojis and a table of their captions; returns the table."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "pairs.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["filepath", "title"])
        for number, (pixels, caption) in enumerate(mope.emoji_scenes("train", count)):
            Image.fromarray(pixels).save(folder / f"{number}.png")
            table.writerow([f"{number}.png", caption])
    return folder / "pairs.csv"


def openai_clip(folder: Path) -> str:
    """A ViT with QuickGELU beside a causal text tower, as OpenAI's."""
    return _architecture(
        folder, "OpenAI-small", {"embed_dim": 16, "quick_gelu": True, "vision_cfg": VISION, "text_cfg": TEXT}
    )


def mobileclip(folder: Path) -> str:
    """A FastViT of few layers beside a text tower without a causal mask, as MobileCLIP's of Apple."""
    vision = {"timm_model_name": "fastvit_small", "timm_pool": "avg", "timm_proj": None, "image_size": 64}
    text = {**TEXT, "no_causal_mask": True}
    return _architecture(
        folder, "MobileCLIP-small", {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text, "custom_text": True}
    )


@timm.models.register_model
def fastvit_small(pretrained: bool = False, **options: Any) -> Any:
    """The image tower of MobileCLIP-S with a layer per stage."""
    return timm.create_model(
        "fastvit_mci0", pretrained=pretrained, layers=(1, 1, 1, 1), embed_dims=(32, 64, 128, 256), **options
    )


def siglip2(folder: Path) -> str:
    """A SigLIP of transformers with its preprocessing and a tokenizer of whole words, as `save_pretrained` writes them."""
    captions = [caption for _, caption in mope.emoji_scenes("train", 48)]
    words = ["<pad>", "<eos>", "<unk>", *sorted({word for caption in captions for word in caption.split()})]
    layers = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.SiglipConfig(
        text_config={
            **layers,
            "vocab_size": len(words),
            "max_position_embeddings": 32,
            "projection_size": 32,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 1,
        },
        vision_config={**layers, "image_size": 32, "patch_size": 8},
    )
    transformers.SiglipModel(config).save_pretrained(folder / "siglip")
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    numbers = {word: number for number, word in enumerate(words)}
    plain = tokenizers.Tokenizer(tokenizers.models.WordLevel(numbers, special["unk_token"]))
    plain.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=plain, **special).save_pretrained(folder / "siglip")
    transformers.SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder / "siglip")
    return f"hf:{folder / 'siglip'}"


def _architecture(folder: Path, name: str, config: dict[str, Any]) -> str:
    """Makes a configuration known to open_clip, as those that it ships are."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(config), encoding="utf-8")
    open_clip.add_model_config(folder / f"{name}.json")
    return name
