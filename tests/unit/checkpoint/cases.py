"""Small models that are saved, and ways to spoil what was saved."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch_pruning as tp
from open_clip import factory

import torch_pruning_mope as mope
from torch_pruning_mope import DualEncoder
from torch_pruning_mope.checkpoint._json import seal

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
    """What somebody would do who knows all checksums: the weights' and the configuration's are right again."""
    content = json.loads((folder / "config.json").read_text())
    del content["checksum"]
    for name, entry in content["files"].items():
        if (folder / name).is_file():
            data = (folder / name).read_bytes()
            entry |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    change(content)
    (folder / "config.json").write_bytes(seal(content))
