"""Check of models without weights: every configuration of open_clip."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import resources
from typing import Any

import open_clip
import torch
from open_clip.coca_model import CoCa
from open_clip.hf_model import HFTextEncoder
from open_clip.model import CLIPTextCfg, CustomTextCLIP
from rich.table import Table
from torch import nn

from .._io import parse_json
from ..deploy._programs import quiet
from ..dual_encoder import DualEncoder
from ..encoder import TowerName
from ..errors import MopeError

_DEPTH = 2
"""Layers of each list that are traced: others are of the same types."""
_VOCABULARY = 1000
"""Vocabulary of text encoders that cannot be built without weights."""


@dataclass(frozen=True)
class ModelCheck:
    """Result of wrapping one configuration.

    Attributes:
        name: Its name in open_clip.
        wraps: True if it wraps, and a pruner can be made for it.
        reason: The error if not; or the model that was checked in its place.
        heads: Attention heads of both encoders together.
        neurons: Neurons, likewise.
        width: Residual channels that can be cut, likewise.
    """

    name: str
    wraps: bool
    reason: str = ""
    heads: int = 0
    neurons: int = 0
    width: int = 0


def load_families() -> list[dict[str, Any]]:
    """Returns the measurements of the tests on one small model of every family, a row each; see README for the columns."""
    text = resources.files("torch_pruning_mope.data").joinpath("assets/families.json").read_text(encoding="utf-8")
    rows: list[dict[str, Any]] = parse_json(text)
    return rows


def families_table() -> Table:
    """Returns the rows of :func:`load_families` for the terminal."""
    rows = load_families()
    table = Table(title="Largest relative difference of embeddings, on one small random model of each family")
    for column in rows[0]:
        table.add_column(column)
    for row in rows:
        table.add_row(*(format_cell(value) for value in row.values()))
    return table


def families_markdown() -> str:
    """Returns the rows of :func:`load_families` as a Markdown table."""
    rows = load_families()
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    return "\n".join(lines + ["| " + " | ".join(map(format_cell, row.values())) + " |" for row in rows])


def format_cell(value: object) -> str:
    """Returns a figure as tables show it."""
    return f"{value:.0e}" if isinstance(value, float) else "–" if value is None else str(value)


def check_models(names: Iterable[str] | None = None) -> Iterator[ModelCheck]:
    """Wraps configurations of open_clip, one after another."""
    # Weights are neither loaded nor made: models are built on the ``meta`` device. Text encoders of Hugging Face, which
    # refuse to run there, are built with two layers of the default size of their type.
    for name in open_clip.list_models() if names is None else names:
        yield check_model(name)


def check_model(name: str) -> ModelCheck:
    """Wraps one configuration of open_clip.

    Args:
        name: Its name.

    Returns:
        The result.

    Raises:
        ValueError: If open_clip has no such configuration.
    """
    config = open_clip.get_model_config(name)
    if config is None:
        raise ValueError(f"name must be one of open_clip.list_models(); found {name!r}.")
    try:
        model, remark = _build(name, config)
        encoder = DualEncoder(model)
        counts = encoder.counts()
        _shorten(encoder)
        encoder.pruner_arguments(head_ratio=0.5 if counts.heads else 0, ffn_ratio=0.5)
        towers: tuple[TowerName, ...] = ("image", "text")
        cuttable = [tower for tower in towers if _can_be_narrowed(encoder, tower)]
    except MopeError as error:
        return ModelCheck(name, False, " ".join(str(error).split()))
    except Exception as error:  # noqa: BLE001 (any other failure is one to report, not to die of after an hour)
        return ModelCheck(name, False, f"{type(error).__name__}: {' '.join(str(error).split())}")
    widths = sum(encoder.widths[tower] for tower in cuttable)
    return ModelCheck(name, True, remark, counts.heads, counts.neurons, widths)


def _build(name: str, config: dict[str, Any]) -> tuple[nn.Module, str]:
    """Returns the model, on the meta device if possible, and a remark."""
    hub_name = config["text_cfg"].get("hf_model_name")
    if hub_name is None:
        with torch.device("meta"), quiet():
            return open_clip.create_model(name, load_weights=False, device="meta"), ""
    text_config, remark = _text_config(hub_name)
    text = CLIPTextCfg(**config["text_cfg"])
    if "layers" in config["vision_cfg"]:
        config["vision_cfg"]["layers"] = _DEPTH
    kind: Any = CoCa if "multimodal_cfg" in config else CustomTextCLIP
    width = config.get("multimodal_cfg", {}).get("width", 512)
    known = {key: config[key] for key in ("embed_dim", "vision_cfg", "quick_gelu", "multimodal_cfg") if key in config}
    with quiet():
        model = kind(text_cfg={"width": width, "layers": 1, "heads": 8}, **known)
        encoder = HFTextEncoder(
            hub_name,
            config["embed_dim"],
            config=text_config,
            pooler_type=text.hf_pooler_type,
            proj_type=text.hf_proj_type,
            output_tokens=text.output_tokens,
        )
    if getattr(text_config, "is_encoder_decoder", False):
        encoder.transformer = encoder.transformer.encoder
    model.text = encoder
    return model.eval(), remark


def _text_config(name: str) -> tuple[Any, str]:
    """Returns the default configuration of a text encoder's type, two layers deep, and a remark."""
    from ..loading._transformers import build_config  # slow to import

    kind = next(kind for part, kind in _TYPES.items() if part in name)
    config = build_config({"model_type": kind})
    for layers in ("num_hidden_layers", "num_layers", "encoder_layers"):
        if layers in vars(config):
            setattr(config, layers, _DEPTH)
    for layers in ("num_decoder_layers", "decoder_layers"):
        if layers in vars(config):
            setattr(config, layers, 1)
    config.vocab_size = _VOCABULARY
    return config, f"text encoder checked with two layers of {kind}'s default size"


_TYPES = {"xlm-roberta": "xlm-roberta", "roberta": "roberta", "mt5": "mt5", "nllb": "m2m_100", "bert": "bert"}


def _shorten(encoder: DualEncoder) -> None:
    """Mutates the model: deletes layers of the types that the first ones have."""
    for name, tower in encoder.towers.items():
        seen: dict[int, int] = {}
        extra: list[int] = []
        known: set[nn.Module] = set()
        for index, block in enumerate(tower.blocks):
            if block.siblings is None or block.module in known:
                continue
            known.add(block.module)
            seen[id(block.siblings)] = seen.get(id(block.siblings), 0) + 1
            if seen[id(block.siblings)] > _DEPTH and name != "decoder":
                extra.append(index)
        if extra:
            encoder.remove_blocks(name, extra)


def _can_be_narrowed(encoder: DualEncoder, tower: TowerName) -> bool:
    if tower not in encoder.widths:
        return False
    try:
        encoder.pruner_arguments(width_ratio=0.5, towers=(tower,))
    except ValueError:
        return False
    return True
