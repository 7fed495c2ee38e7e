"""Pruned models as stock models of Hugging Face's transformers."""

import copy
from pathlib import Path
from typing import Any

from torch import nn

from ..encoder import EncoderCore, TowerName
from ..errors import ExportError
from ..towers import towers_of
from ._programs import Runner, quiet
from ._widths import one_width, stock_state

_SIZES = ("num_hidden_layers", "num_attention_heads", "intermediate_size")


def write_transformers(encoder: EncoderCore, folder: Path) -> dict[TowerName, Runner]:
    """Writes a folder that transformers loads by ``from_pretrained``."""
    model: Any = encoder.model
    if not type(model).__module__.startswith("transformers."):
        raise ExportError(
            f"format 'transformers' is for models of transformers; found {type(model).__name__}. Use 'onnx', 'torch' or "
            "'open_clip'."
        )
    config = copy.deepcopy(model.config)
    parts: tuple[tuple[TowerName, Any], ...] = (("image", config.vision_config), ("text", config.text_config))
    for tower, own in parts:
        for name, value in zip(_SIZES, one_width(encoder, tower), strict=True):
            setattr(own, name, value)
        if encoder.towers[tower].width != own.hidden_size:
            own.hidden_size = encoder.towers[tower].width
    with quiet():
        stock = type(model)._from_config(config)
        try:
            stock.load_state_dict(stock_state(model), strict=True)
        except RuntimeError as error:
            raise ExportError(
                f"format 'transformers' must describe the model; its weights do not fit into {type(model).__name__} of the "
                f"configuration that was made for it: {error}. Use 'onnx' or 'torch'."
            ) from error
        stock.to(model.dtype).eval().save_pretrained(folder)
        loaded: nn.Module = type(model).from_pretrained(folder).eval()
    towers = towers_of(loaded)
    return {"image": towers.encode_image, "text": towers.encode_text}
