"""The tiny CLIP that ships with the package: a plain open_clip model of 3.8M parameters for the emoji scenes."""

from __future__ import annotations

from importlib import resources
from typing import Any

import open_clip
import torch
from safetensors.torch import load

from .._io import parse_json
from ._tokenizer import EmojiTokenizer


def tiny_clip_config() -> dict[str, Any]:
    """Returns the architecture, in the form of open_clip's model configs: `embed_dim`, `vision_cfg`, `text_cfg`."""
    config: dict[str, Any] = parse_json((resources.files(__package__) / "assets" / "tiny_clip.json").read_text("utf-8"))
    trained, found = config["text_cfg"]["vocab_size"], EmojiTokenizer().vocab_size
    if trained != found:
        raise ValueError(
            f"concepts.tsv must give the tiny CLIP a vocabulary of {trained} ids; found {found}. Restore the file or retrain."
        )
    return config


def build_tiny_clip() -> open_clip.CLIP:
    """Returns the architecture with fresh random weights, in float32."""
    config = tiny_clip_config()
    return open_clip.CLIP(
        embed_dim=config["embed_dim"],
        vision_cfg=open_clip.CLIPVisionCfg(**config["vision_cfg"]),
        text_cfg=open_clip.CLIPTextCfg(**config["text_cfg"]),
    )


def load_tiny_clip() -> open_clip.CLIP:
    """Returns the trained model, in float32 and evaluation mode; its inputs are those of `emoji_pairs`."""
    model = build_tiny_clip()
    weights = load((resources.files(__package__) / "assets" / "tiny_clip.safetensors").read_bytes())
    model.load_state_dict({name: tensor.to(torch.float32) for name, tensor in weights.items()}, strict=True)
    return model.eval()
