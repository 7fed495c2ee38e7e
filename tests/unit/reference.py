"""CLIP's forward written out once more, over a plain state dict, with any channels left out: the oracle of surgery.

It shares no code with open_clip, Torch-Pruning or this package. Widths are cut by slicing each tensor where it is used.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class Kept:
    """Units left of one tower, in the numbering of the unpruned model; None or a missing layer: all."""

    width: list[int] | None = None
    heads: dict[int, list[int]] = field(default_factory=dict)
    neurons: dict[int, list[int]] = field(default_factory=dict)


def _norm(state: dict[str, Tensor], name: str, x: Tensor, width: Tensor) -> Tensor:
    return F.layer_norm(x, (len(width),), state[f"{name}.weight"][width], state[f"{name}.bias"][width])


def _layers(
    state: dict[str, Tensor], prefix: str, x: Tensor, head_dim: int, kept: Kept, width: Tensor, mask: Tensor | None
) -> Tensor:
    layers = len(
        {name.split("resblocks.")[1].split(".")[0] for name in state if name.startswith(f"{prefix}resblocks.")}
    )
    for layer in range(layers):
        p = f"{prefix}resblocks.{layer}."
        all_heads = state[f"{p}attn.v_proj.weight"].shape[0] // head_dim
        y = _norm(state, f"{p}ln_1", x, width)
        out = state[f"{p}attn.out_proj.bias"][width]
        for head in kept.heads.get(layer, range(all_heads)):
            rows = torch.arange(head * head_dim, (head + 1) * head_dim)
            q, k, v = (
                y @ state[f"{p}attn.{n}_proj.weight"][rows][:, width].T + state[f"{p}attn.{n}_proj.bias"][rows]
                for n in "qkv"
            )
            weights = q @ k.mT / head_dim**0.5
            out = out + (weights if mask is None else weights + mask).softmax(-1) @ v @ (
                state[f"{p}attn.out_proj.weight"][width][:, rows].T
            )
        x = x + out
        neurons = torch.tensor(kept.neurons.get(layer, range(state[f"{p}mlp.c_fc.weight"].shape[0])))
        y = _norm(state, f"{p}ln_2", x, width)
        hidden = F.gelu(y @ state[f"{p}mlp.c_fc.weight"][neurons][:, width].T + state[f"{p}mlp.c_fc.bias"][neurons])
        x = x + hidden @ state[f"{p}mlp.c_proj.weight"][width][:, neurons].T + state[f"{p}mlp.c_proj.bias"][width]
    return x


def image_embeddings(state: dict[str, Tensor], images: Tensor, head_dim: int, kept: Kept) -> Tensor:
    """A class-token ViT."""
    kernel = state["visual.conv1.weight"]
    width = torch.arange(kernel.shape[0]) if kept.width is None else torch.tensor(kept.width)
    x = F.conv2d(images, kernel[width], stride=kernel.shape[-1]).flatten(2).mT
    token = state["visual.class_embedding"][width].expand(len(x), 1, -1)
    x = torch.cat([token, x], 1) + state["visual.positional_embedding"][:, width]
    x = _norm(state, "visual.ln_pre", x, width)
    x = _layers(state, "visual.transformer.", x, head_dim, kept, width, None)
    return _norm(state, "visual.ln_post", x[:, 0], width) @ state["visual.proj"][width]


def text_embeddings(state: dict[str, Tensor], tokens: Tensor, head_dim: int, kept: Kept) -> Tensor:
    """A causal text tower that pools the highest id."""
    table = state["token_embedding.weight"]
    width = torch.arange(table.shape[1]) if kept.width is None else torch.tensor(kept.width)
    x = table[:, width][tokens] + state["positional_embedding"][:, width]
    mask = torch.full((tokens.shape[1],) * 2, -torch.inf).triu(1)
    x = _layers(state, "transformer.", x, head_dim, kept, width, mask)
    x = _norm(state, "ln_final", x, width)[torch.arange(len(x)), tokens.argmax(-1)]
    return x @ state["text_projection"][width]


def masked_state(state: dict[str, Tensor], head_dims: dict[str, int], kept: dict[str, Kept]) -> dict[str, Tensor]:
    """A copy of the state with the output weights of lost heads and neurons set to zero: the masked model."""
    state = {name: tensor.clone() for name, tensor in state.items()}
    for prefix, tower in (("visual.", "image"), ("", "text")):
        for layer, heads in kept[tower].heads.items():
            weight = state[f"{prefix}transformer.resblocks.{layer}.attn.out_proj.weight"]
            weight.view(len(weight), -1, head_dims[tower])[
                :, _complement(heads, weight.shape[1] // head_dims[tower])
            ] = 0
        for layer, neurons in kept[tower].neurons.items():
            weight = state[f"{prefix}transformer.resblocks.{layer}.mlp.c_proj.weight"]
            weight[:, _complement(neurons, weight.shape[1])] = 0
    return state


def _complement(kept: list[int], total: int) -> list[int]:
    return sorted(set(range(total)) - set(kept))
