"""A dual encoder that no library has, with attention and MLPs of its own: made known, trained, pruned, brought back, saved.

    python examples/bring_your_own.py

needs neither weights nor a network: it learns emoji scenes for a few minutes. With weights of your own, leave out the training.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from pathlib import Path

import shared
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torch_pruning_mope as mope

WIDTH, HEADS, NEURONS, LAYERS, JOINT = 96, 6, 192, 3, 64
TOKENIZER = mope.data.EmojiTokenizer()


# The model, as you have it. Nothing in it knows of pruning.


class OwnAttention(nn.Module):
    """Self-attention with one projection for queries, keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """[N, T, D] to the same."""
        query, key, value = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        return self.out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class OwnLayer(nn.Module):
    """Attention and a gated MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.attention = OwnAttention()
        self.gate, self.up, self.down = nn.Linear(WIDTH, NEURONS), nn.Linear(WIDTH, NEURONS), nn.Linear(NEURONS, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """[N, T, D] to the same."""
        x = x + self.attention(self.norm1(x))
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class OwnEncoder(nn.Module):
    """Layers between an embedding and the mean over the tokens."""

    def __init__(self, embed: nn.Module, tokens: int) -> None:
        super().__init__()
        self.embed, self.layers = embed, nn.ModuleList([OwnLayer() for _ in range(LAYERS)])
        self.positions = nn.Parameter(0.02 * torch.randn(tokens, WIDTH))
        self.norm, self.joint = nn.RMSNorm(WIDTH), nn.Linear(WIDTH, JOINT)

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs to embeddings [N, J]."""
        x = self.embed(inputs) + self.positions
        for layer in self.layers:
            x = layer(x)
        return self.joint(self.norm(x).mean(1))


class Patches(nn.Conv2d):
    """Squares of 8 pixels."""

    def forward(self, images: Tensor) -> Tensor:
        """[N, 3, 64, 64] to [N, 64, D]."""
        return super().forward(images).flatten(2).mT


class OwnClip(nn.Module):
    """The whole of it."""

    def __init__(self) -> None:
        super().__init__()
        self.vision = OwnEncoder(Patches(3, WIDTH, kernel_size=8, stride=8), 64)
        self.text = OwnEncoder(nn.Embedding(TOKENIZER.vocab_size, WIDTH), TOKENIZER.context_length)
        self.logit_scale = nn.Parameter(torch.tensor(2.66))


# What makes it known, in three steps. First: an attention whose heads can go, called as yours is.


class PrunableOwnAttention(mope.surgery.PrunableAttention):
    """Takes one argument and returns one tensor."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """[N, T, D] to the same."""
        return super().forward(x, x, x)[0]


@mope.register_attention(OwnAttention)
def convert(module: OwnAttention) -> PrunableOwnAttention:
    """The same weights in separate projections."""
    found = PrunableOwnAttention(WIDTH, WIDTH, WIDTH, WIDTH, HEADS)
    weights, biases = module.qkv.weight.chunk(3), module.qkv.bias.chunk(3)
    for linear, weight, bias in zip((found.q_proj, found.k_proj, found.v_proj), weights, biases, strict=True):
        linear.weight, linear.bias = nn.Parameter(weight.detach().clone()), nn.Parameter(bias.detach().clone())
    found.out_proj = module.out
    return found


# Second: which neurons a layer has: made by two linear layers, taken by a third.


@mope.register_channels(OwnLayer)
def units(layer: OwnLayer) -> list[tuple[str, mope.towers.Channels]]:
    """The neurons; the heads are known by the attention."""
    return [("neurons", mope.towers.Channels((layer.gate, layer.up), layer.down))]


# Third: where the encoders are, and what they take.


@mope.register_towers(OwnClip)
def towers(model: OwnClip) -> mope.towers.Towers:
    """Both encoders, run by their own code."""
    return mope.towers.Towers(
        image=mope.towers.OpaqueTower(model.vision, model.vision, lambda: torch.zeros(1, 3, 64, 64)),
        text=mope.towers.OpaqueTower(model.text, model.text, lambda: torch.ones(1, 24, dtype=torch.long)),
        encode_image=model.vision,
        encode_text=model.text,
        image_shape=(3, 64, 64),
        context_length=TOKENIZER.context_length,
    )


def main() -> None:
    """Train, score, plan, prune, distil, evaluate, save, load."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400, help="training steps")
    parser.add_argument("--pairs", type=int, default=500, help="pairs to score on, and as many to evaluate on")
    parser.add_argument("--groups", type=int, default=8, help="neuron groups per MLP")
    parser.add_argument("--output", type=Path, help="folder for the result; by default a temporary one")
    options = parser.parse_args()
    folder = (options.output or Path(tempfile.mkdtemp())) / "pruned"
    calibration, test = mope.emoji_pairs("calibration", options.pairs), mope.emoji_pairs("test", options.pairs)

    torch.manual_seed(0)
    encoder = mope.DualEncoder(OwnClip())
    loaded = mope.loading.LoadedModel(encoder.model, mope.load_model("tiny").preprocess, TOKENIZER)
    batches = list(mope.data.emoji_batches(options.steps, 64))
    mope.distill(encoder, batches, steps=options.steps, learning_rate=1e-3)  # without a teacher, the contrastive loss
    shared.show(mope.evaluate(loaded, test, stage="dense"))

    teacher = mope.DualEncoder(copy.deepcopy(encoder.model))
    table = mope.score(encoder, calibration, metric="contrastive_loss", groups=options.groups)
    plan = mope.make_plan(encoder, table, parameters="60%")
    print(plan)
    plan.apply(encoder)
    shared.show(mope.evaluate(loaded, test, stage="pruned"))

    mope.distill(encoder, batches, teacher=teacher, steps=max(1, options.steps // 4), learning_rate=5e-4)
    row = mope.evaluate(loaded, test, stage="distilled")
    shared.show(row)

    encoder.save_pretrained(folder)
    again = mope.DualEncoder.from_pretrained(folder, model=OwnClip())  # nothing but a fresh one can say what it was
    found = mope.evaluate(loaded._replace(model=again.model), test, stage="distilled")
    print(f"saved {folder}; loaded again it is the same: {found['i2t_r1'] == row['i2t_r1']}")


if __name__ == "__main__":
    main()
