"""Pruned models as stock models of open_clip and transformers, whose layers all have one width."""

import copy
import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.transformer import (
    CustomResidualAttentionBlock,
    LayerScale,
    QuickGELU,
    TextTransformer,
    VisionTransformer,
)
from safetensors.torch import save_file
from torch import Tensor, nn

from ..encoder import EncoderCore, TowerName
from ..errors import ExportError
from ..surgery import PrunableAttention
from ..towers import towers_of
from ._programs import Runner, quiet

_SIZES = ("num_hidden_layers", "num_attention_heads", "intermediate_size")


def write_open_clip(encoder: EncoderCore, folder: Path) -> dict[TowerName, Runner]:
    """Writes a folder that open_clip loads by ``local-dir:``."""
    model = encoder.model
    text = model if type(model) is CLIP else getattr(model, "text", None)
    kinds = [type(part).__name__ for part in (model, getattr(model, "visual", None), text)]
    native = type(model) is CLIP or (type(model) is CustomTextCLIP and type(text) is TextTransformer)
    if not native or type(model.visual) is not VisionTransformer or model.visual.attn_pool is not None:
        raise ExportError(
            "format 'open_clip' is for open_clip's own ViT without an attention pool, with its own text Transformer; found "
            f"{', '.join(dict.fromkeys(kinds))}. Use 'onnx' or 'torch'."
        )
    config = {
        "embed_dim": model.visual.proj.shape[1],
        "quick_gelu": isinstance(model.visual.transformer.resblocks[0].mlp.gelu, QuickGELU),
        "vision_cfg": _vision(encoder, model.visual),
        "text_cfg": _text(encoder, text),
    }
    if type(model) is CustomTextCLIP:
        config["custom_text"] = True
    if model.logit_bias is not None:
        config["init_logit_bias"] = 0.0
    if model.logit_scale.ndim:
        config["nonscalar_logit_scale"] = True
    about = {"model_cfg": config, "preprocess_cfg": dict(getattr(model.visual, "preprocess_cfg", {}))}
    (folder / "open_clip_config.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    save_file(_stock_state(model), folder / "open_clip_model.safetensors", metadata={"format": "pt"})
    try:
        with quiet():
            loaded = open_clip.create_model(f"local-dir:{folder}").eval()
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise ExportError(
            f"format 'open_clip' must describe the model; open_clip cannot load what was written: {error}. Use 'onnx' or "
            "'torch'."
        ) from error
    loaded = loaded.to(next(model.parameters()).dtype)
    return {"image": loaded.encode_image, "text": loaded.encode_text}


def _vision(encoder: EncoderCore, visual: Any) -> dict[str, Any]:
    layers, heads, neurons = _one_width(encoder, "image")
    width = visual.conv1.out_channels
    return {
        "image_size": list(visual.image_size),
        "patch_size": visual.patch_size[0],
        "width": width,
        "layers": layers,
        "head_width": width // heads,
        "mlp_ratio": _ratio(neurons, width),
        "no_ln_pre": isinstance(visual.ln_pre, nn.Identity),
        "final_ln_after_pool": visual.final_ln_after_pool,
        "pool_type": visual.pool_type,
        **_of_blocks(visual.transformer.resblocks[0]),
    }


def _text(encoder: EncoderCore, owner: Any) -> dict[str, Any]:
    layers, heads, neurons = _one_width(encoder, "text")
    words, width = owner.token_embedding.weight.shape
    projection = owner.text_projection
    return {
        "context_length": owner.positional_embedding.shape[0],
        "vocab_size": words,
        "width": width,
        "heads": heads,
        "layers": layers,
        "mlp_ratio": _ratio(neurons, width),
        "pool_type": getattr(owner, "text_pool_type", None) or owner.pool_type,
        "eos_id": getattr(owner, "text_eos_id", None) or getattr(owner, "eos_id", 2),
        "no_causal_mask": owner.attn_mask is None,
        "proj_type": "none" if projection is None else "linear",
        "proj_bias": isinstance(projection, nn.Linear),
        **_of_blocks(owner.transformer.resblocks[0]),
    }


def _ratio(neurons: int, width: int) -> float:
    """``mlp_ratio``, which open_clip multiplies by the width and rounds down."""
    ratio = neurons / width
    return ratio if int(width * ratio) == neurons else (neurons + 0.5) / width


def _of_blocks(block: Any) -> dict[str, Any]:
    """Options that all blocks share."""
    found: dict[str, Any] = {}
    if isinstance(block.ls_1, LayerScale):
        found["ls_init_value"] = 1.0  # the weights are loaded
    if block.ln_1.eps != nn.LayerNorm(1).eps:
        found["norm_kwargs"] = {"eps": block.ln_1.eps}
    if getattr(block.mlp.gelu, "approximate", "none") != "none":
        found["act_kwargs"] = {"approximate": block.mlp.gelu.approximate}
    if isinstance(block, CustomResidualAttentionBlock):
        attention = block.attn
        found |= {
            "block_type": "custom",
            "qk_norm": not isinstance(attention.q_norm, nn.Identity),
            "scaled_cosine_attn": attention.query_scale is not None,
            "scale_heads": attention.head_scale is not None,
            "scale_attn_inner": not isinstance(attention.norm, nn.Identity),
            "scale_attn": not isinstance(block.ln_attn, nn.Identity),
            "scale_fc": not isinstance(block.mlp.ln, nn.Identity),
        }
    return found


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
        for name, value in zip(_SIZES, _one_width(encoder, tower), strict=True):
            setattr(own, name, value)
        if encoder.towers[tower].width != own.hidden_size:
            own.hidden_size = encoder.towers[tower].width
    with quiet():
        stock = type(model)._from_config(config)
        try:
            stock.load_state_dict(_stock_state(model), strict=True)
        except RuntimeError as error:
            raise ExportError(
                f"format 'transformers' must describe the model; its weights do not fit into {type(model).__name__} of the "
                f"configuration that was made for it: {error}. Use 'onnx' or 'torch'."
            ) from error
        stock.to(model.dtype).eval().save_pretrained(folder)
        loaded: nn.Module = type(model).from_pretrained(folder).eval()
    towers = towers_of(loaded)
    return {"image": towers.encode_image, "text": towers.encode_text}


def _one_width(encoder: EncoderCore, tower: TowerName) -> tuple[int, int, int]:
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


def _stock_state(model: nn.Module) -> dict[str, Tensor]:
    """Returns the state dict of a model under the names of the attention that it was built with, all tensors of their own."""
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
