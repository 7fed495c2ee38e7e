"""Small models that are saved, and ways to spoil what was saved."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch_pruning as tp
import transformers
from open_clip import factory

import torch_pruning_mope as mope
from torch_pruning_mope import DualEncoder

CONFIG: dict[str, Any] = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 16, "layers": 2, "width": 24, "patch_size": 8, "head_width": 8, "mlp_ratio": 2.0},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 2, "mlp_ratio": 2.0},
}


def register(folder: Path, monkeypatch: pytest.MonkeyPatch, **models: dict[str, Any]) -> None:
    """Architectures as if open_clip had shipped them."""
    for name in ("_MODEL_CONFIG_PATHS", "_MODEL_CONFIGS"):
        monkeypatch.setattr(factory, name, getattr(factory, name).copy())
    for name, config in models.items():
        (folder / f"{name}.json").write_text(json.dumps(config))
        open_clip.add_model_config(folder / f"{name}.json")


def clip_folder_at(folder: Path, layers: int = 1) -> Path:
    """A small CLIP of transformers with all its parts, as save_pretrained writes them."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": layers, "num_attention_heads": 2}
    text = {"vocab_size": 60, "max_position_embeddings": 12, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    vision = {**size, "image_size": 32, "patch_size": 8}
    config = transformers.CLIPConfig(text_config={**size, **text}, vision_config=vision, projection_dim=8)
    transformers.CLIPModel(config).half().save_pretrained(folder)
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    transformers.CLIPTokenizer({word: index for index, word in enumerate(words)}, []).save_pretrained(folder)
    edge = {"height": 32, "width": 32}
    transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=edge).save_pretrained(folder)
    return folder


def in_cache(cache: Path, repository: str) -> Path:
    """Where the Hub's client keeps a repository's files, and looks for them when offline."""
    root = cache / f"models--{repository.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text("0" * 40)
    return root / "snapshots" / ("0" * 40)


def prune(encoder: DualEncoder, *, width: float = 0.0, blocks: bool = False, head_ratio: float = 0.3) -> None:
    """Mutates the model: removes what chance says."""
    random = tp.importance.RandomImportance()
    importance = mope.WeightedImportance(encoder, [(random, 1.0)], fallback=random)
    heads = any(len([b for b in tower.blocks if b.attention]) for tower in encoder.towers.values())
    ratios: dict[str, Any] = {"head_ratio": head_ratio if heads else 0.0, "ffn_ratio": 0.5, "global_pruning": True}
    try:
        mope.prune(encoder, importance, width_ratio=width, **ratios)
    except ValueError:  # the width of some towers cannot be cut
        mope.prune(encoder, importance, **ratios)
    for tower in ("image", "text") if blocks else ():
        loose = [place for place, block in enumerate(encoder.towers[tower].blocks) if block.siblings is not None]
        if len(loose) > 1:
            encoder.remove_blocks(tower, loose[:1])  # type: ignore[arg-type]


def reseal(folder: Path, change: Callable[[dict[str, Any]], None] = lambda _: None) -> None:
    """Edits ``config.json`` as somebody would who knows all digests: those of the files that are there are right again."""
    content = json.loads((folder / "config.json").read_text())
    there = [folder / "model.safetensors", *(folder / "base").glob("*")]
    content["sha256"] = {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in there
        if path.is_file()
    }
    change(content)
    (folder / "config.json").write_text(json.dumps(content))
