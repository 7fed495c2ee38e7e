"""Checks and state dicts for the stock models of open_clip and transformers, whose layers all have one width."""

from typing import Any

import torch
from torch import Tensor, nn

from ..encoder import EncoderCore, TowerName
from ..errors import ExportError
from ..surgery import PrunableAttention


def one_width(encoder: EncoderCore, tower: TowerName) -> tuple[int, int, int]:
    """Layers, heads per layer and neurons per layer of a tower whose layers are alike."""
    blocks = [block for block in encoder.towers[tower].blocks if block.siblings is not None]
    found = []
    for kind, parts in (
        ("heads", [block.attention for block in blocks]),
        ("neurons", [block.feed_forward for block in blocks]),
    ):
        counts = [0 if part is None else part.num_units for part in parts]
        usual = max(counts, key=counts.count)
        if differing := [index for index, count in enumerate(counts) if count != usual]:
            raise ExportError(
                f"format: a stock model must have as many {kind} in each layer; found {usual} in most layers of the {tower} "
                f"tower, and {', '.join(f'{counts[index]} in layer {index}' for index in differing)}. Use 'onnx' or 'torch', "
                "or prune with one ratio for all layers (global_pruning=False)."
            )
        found.append(usual)
    heads, neurons = found
    size = blocks[0].attention.unit_size if blocks[0].attention is not None else 0
    width = encoder.towers[tower].width
    if heads * size != width:
        raise ExportError(
            f"format: the heads of a stock model must be as wide together as its residual width; found {heads} heads of {size} "
            f"channels in the {tower} tower, whose width is {width}. Use 'onnx' or 'torch', or prune neurons and layers alone."
        )
    if not neurons:
        raise ExportError(
            f"format: a stock model must have neurons; found none in the {tower} tower. Use 'onnx' or 'torch'."
        )
    return len(blocks), heads, neurons


_ORIGINAL = {"q_norm.": "ln_q.", "k_norm.": "ln_k.", "norm.": "ln_inner.", "query_scale": "logit_scale"}


def stock_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of a model under the names of the attention that it was built with, all tensors of their own."""
    state: dict[str, Any] = dict(model.state_dict())
    for path, module in model.named_modules():
        if isinstance(module, PrunableAttention):
            for part in ("weight", "bias"):
                tensors = [state.pop(f"{path}.{letter}_proj.{part}", None) for letter in "qkv"]
                if all(tensor is not None for tensor in tensors):
                    state[f"{path}.in_proj_{part}"] = torch.cat(tensors)
            for ours, theirs in _ORIGINAL.items():
                for name in [name for name in state if name.startswith(f"{path}.{ours}")]:
                    state[f"{path}.{theirs}{name.removeprefix(f'{path}.{ours}')}"] = state.pop(name)
    return {name: tensor.detach().contiguous().clone() for name, tensor in state.items()}
