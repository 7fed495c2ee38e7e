"""A short fine-tuning with the plain contrastive loss, the same for every row of the table."""

import math

import torch
from tqdm import tqdm

from ..data import emoji_batches
from ..dual_encoder import DualEncoder
from ..scoring import batch_losses

MAX_LOGIT_SCALE = math.log(100)
"""CLIP's ceiling of the temperature (arXiv 2103.00020, section 2.5)."""


def schedule(step: int, steps: int) -> float:
    """Share of the peak learning rate: a linear warm-up over the first tenth, then a cosine to zero."""
    warmup = max(1, steps // 10)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def fine_tune(
    encoder: DualEncoder,
    *,
    steps: int,
    seed: int = 0,
    batch_size: int = 128,
    learning_rate: float = 2.5e-4,
    label: str = "",
    progress: bool = True,
) -> None:
    """Mutates the encoder's model: trains it on emoji scenes of the training split; leaves it in eval mode.

    Args:
        encoder: The dual encoder.
        steps: Batches to train on.
        seed: Which stream of batches; the same seed gives every model the same pairs.
        batch_size: Pairs per batch.
        learning_rate: The peak of the schedule.
        label: What the progress bar calls it.
        progress: Whether to show a progress bar.
    """
    weights = list(encoder.model.parameters())
    optimizer = torch.optim.AdamW(weights, lr=learning_rate, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule(step, steps))
    # From its second step on a stream with a curriculum of one step has all kinds of scenes in their final shares.
    batches = emoji_batches(steps + 1, batch_size, seed, curriculum_steps=1, start=1)
    encoder.model.train()
    bar = tqdm(batches, f"fine-tune {label}", total=steps, unit="step", disable=not progress, delay=2, leave=False)
    for images, tokens in bar:
        optimizer.zero_grad()
        batch_losses(encoder, images, tokens).mean().backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        scheduler.step()
        with torch.no_grad():
            encoder.model.logit_scale.clamp_(0, MAX_LOGIT_SCALE)
    encoder.model.zero_grad()
    encoder.model.eval()
