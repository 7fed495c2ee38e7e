"""Trains the tiny CLIP that ships with the package, on emoji scenes drawn as it goes.

    python examples/train_tiny_clip.py --out tiny_clip.safetensors
    python examples/train_tiny_clip.py --architecture siglip --bf16 --steps 3000 --out tiny_siglip.safetensors

The defaults are those of the shipped weights: a fixed number of steps and a seed, no clock, meant to reach the
same recall within a point on another machine. The learning rate warms up, stays constant, and falls to zero over the last
fifth of the steps. `--continue-from` a state saved before that fall, with other `--steps`, gives what a run of that
many steps from the start would give, so what 20 % more steps add is cheap to measure. `--config` trains another
architecture: a JSON file with some keys of `tiny_clip.json`, the rest staying as they are. `--architecture siglip` trains a
transformers `SiglipModel` of 4.2 M parameters with the sigmoid loss instead (arXiv 2303.15343).
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from torch_pruning_mope import DualEncoder
from torch_pruning_mope.data import Pairs, emoji_batches, emoji_pairs
from torch_pruning_mope.data._tiny_clip import build_tiny_clip, tiny_clip_config
from torch_pruning_mope.metrics import Recall

WARMUP_STEPS = 100
DECAY_SHARE = 0.2
WEIGHT_DECAY = 0.05
MAX_LOGIT_SCALE = math.log(100)


def build_model(config: Path | None) -> open_clip.CLIP:
    """The shipped architecture with fresh weights, or, with a JSON file, the same but for the keys that it gives."""
    if config is None:
        return build_tiny_clip()
    base, given = tiny_clip_config(), json.loads(config.read_text("utf-8"))
    return open_clip.CLIP(
        embed_dim=given.get("embed_dim", base["embed_dim"]),
        vision_cfg=open_clip.CLIPVisionCfg(**base["vision_cfg"] | given.get("vision_cfg", {})),
        text_cfg=open_clip.CLIPTextCfg(**base["text_cfg"] | given.get("text_cfg", {})),
    )


def build_tiny_siglip() -> Any:
    """A transformers SiglipModel of the tiny CLIP's size, with fresh weights: attention pool, tanh GELU, sigmoid loss."""
    from transformers import SiglipConfig, SiglipModel

    text = {"vocab_size": tiny_clip_config()["text_cfg"]["vocab_size"], "max_position_embeddings": 24}
    text |= {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4}
    vision = {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 6}
    config = SiglipConfig(
        text_config=text | {"projection_size": 192, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1},
        vision_config=vision | {"image_size": 64, "patch_size": 16},
    )
    model = SiglipModel(config)
    with torch.no_grad():
        model.logit_scale.fill_(math.log(10))
        model.logit_bias.fill_(-10)
    return model


def sigmoid_loss(model: Any, images: Tensor, tokens: Tensor) -> Tensor:
    """SigLIP's loss: each pair of an image and a caption of the batch is a binary choice (arXiv 2303.15343, eq. 1)."""
    output = model(input_ids=tokens, pixel_values=images)
    labels = 2 * torch.eye(len(images)) - 1
    return -F.logsigmoid(labels * output.logits_per_image.float()).sum() / len(images)


def encode_text(model: open_clip.CLIP, tokens: Tensor) -> Tensor:
    """What `model.encode_text` returns, without computing the padding after the longest caption."""
    length = int(tokens.argmax(dim=1).max()) + 1  # the end of the text has the highest id
    tokens = tokens[:, :length]
    x = model.token_embedding(tokens) + model.positional_embedding[:length]
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
    return x[torch.arange(len(tokens)), tokens.argmax(dim=1)] @ model.text_projection


def contrastive_loss(model: open_clip.CLIP, images: Tensor, tokens: Tensor) -> Tensor:
    """CLIP's loss: cross-entropy of each image over the captions of its batch, and the other way round."""
    image_embeddings = F.normalize(model.encode_image(images).float(), dim=-1)
    text_embeddings = F.normalize(encode_text(model, tokens).float(), dim=-1)
    logits = model.logit_scale.exp() * image_embeddings @ text_embeddings.T
    labels = torch.arange(len(logits))
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def decay_start(steps: int) -> int:
    """The step at which the learning rate begins to fall."""
    return min(round(steps * (1 - DECAY_SHARE)), steps - 1)


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up, a constant, and a linear fall to zero over the last fifth."""
    fall = (steps - step) / (steps - decay_start(steps))
    return peak * min((step + 1) / WARMUP_STEPS, 1.0, fall)


def build_optimizer(model: nn.Module, peak: float) -> torch.optim.AdamW:
    """AdamW; vectors, embeddings and the temperature do not decay."""
    matrices = [p for name, p in model.named_parameters() if p.ndim >= 2 and "embedding" not in name]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98), eps=1e-6)


@torch.inference_mode()
def recall(model: Any, pairs: Pairs) -> dict[str, float]:
    """Recall at 1, 5 and 10 in both directions and their mean, in percent; a tie counts as a miss."""
    model.eval()
    encoder = DualEncoder(copy.deepcopy(model))
    images = torch.cat([encoder.embed("image", batch) for batch in pairs.images.split(250)])
    texts = torch.cat([encoder.embed("text", batch) for batch in pairs.tokens.split(250)])
    metrics = {f"{way}_r{k}": Recall((k,), (way,)) for way in ("i2t", "t2i") for k in (1, 5, 10)}
    metrics["recall_mean"] = Recall()
    return {name: 100 * metric(images, texts) for name, metric in metrics.items()}


def train(options: argparse.Namespace) -> tuple[Any, float]:
    """Trains one model; returns it with the seconds taken by the steps of this process."""
    torch.manual_seed(options.seed)
    siglip = options.architecture == "siglip"
    model: Any = build_tiny_siglip() if siglip else build_model(options.config)
    loss_of = sigmoid_loss if siglip else contrastive_loss
    optimizer = build_optimizer(model, options.lr)
    first = 0
    if options.continue_from:
        state = torch.load(options.continue_from, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    model.train()
    began, shown = time.perf_counter(), 0.0
    stream = emoji_batches(options.steps, options.batch_size, options.seed, options.curriculum_steps, start=first)
    for step, (images, tokens) in enumerate(stream, start=first):
        if options.states and step % options.state_every == 0 and first < step <= decay_start(options.steps):
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
            torch.save(state, options.states / f"step_{step}.pt")
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, options.steps, options.lr)
        with torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
            loss = loss_of(model, images, tokens)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=MAX_LOGIT_SCALE)
        shown = loss.item() if step == first else 0.98 * shown + 0.02 * loss.item()
        if (step + 1) % 50 == 0:
            pace = (time.perf_counter() - began) / (step + 1 - first)
            print(f"step {step + 1}/{options.steps}  loss {shown:.3f}  {pace:.3f} s/step", flush=True)
    return model, time.perf_counter() - began


def main() -> None:
    """Trains, saves float16 weights and prints the recall of exactly these."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="file for the float16 weights")
    parser.add_argument("--architecture", choices=("clip", "siglip"), default="clip")
    parser.add_argument("--config", type=Path, help="JSON file of another architecture")
    parser.add_argument("--steps", type=int, default=4320)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--curriculum-steps", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--test-size", type=int, default=3000, help="pairs of the test gallery")
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=False, help="bfloat16 autocast")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--states", type=Path, help="folder for states saved before the learning rate falls")
    parser.add_argument("--state-every", type=int, default=576, help="steps between these")
    parser.add_argument("--continue-from", type=Path, help="such a state, to be trained on")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    model, seconds = train(options)
    weights = {name: tensor.to(torch.float16).contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, options.out)
    model.load_state_dict(weights)
    figures = recall(model, emoji_pairs("test", options.test_size))
    print(
        json.dumps({"steps": options.steps, "seconds": round(seconds), **{k: round(v, 2) for k, v in figures.items()}})
    )


if __name__ == "__main__":
    main()
