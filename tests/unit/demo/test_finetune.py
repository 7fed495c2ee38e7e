"""The short fine-tuning."""

import copy

import pytest
import torch

from torch_pruning_mope import DualEncoder, emoji_pairs, load_tiny_clip
from torch_pruning_mope.demo import fine_tune
from torch_pruning_mope.demo._finetune import MAX_LOGIT_SCALE, schedule
from torch_pruning_mope.scoring import batch_losses


@pytest.mark.parametrize("steps", [1, 2, 10, 100])
def test_schedule_warms_up_and_falls(steps: int) -> None:
    rates = [schedule(step, steps) for step in range(steps)]
    top = rates.index(max(rates))
    assert max(rates) == 1.0
    assert min(rates) > 0
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


def tuned(steps: int, seed: int, model: torch.nn.Module) -> DualEncoder:
    encoder = DualEncoder(copy.deepcopy(model))
    fine_tune(encoder, steps=steps, seed=seed, batch_size=12, progress=False)
    return encoder


def test_a_damaged_model_recovers_and_the_seed_decides() -> None:
    model = load_tiny_clip()
    with torch.no_grad():
        for parameter in model.visual.parameters():
            parameter += 0.08 * torch.randn_like(parameter)
    pairs = emoji_pairs("calibration", 64)

    def loss(encoder: DualEncoder) -> float:
        with torch.no_grad():
            return batch_losses(encoder, pairs.images, pairs.tokens).mean().item()

    before, after = loss(DualEncoder(copy.deepcopy(model))), tuned(6, 0, model)
    assert loss(after) < before
    assert not after.model.training
    assert after.model.logit_scale <= MAX_LOGIT_SCALE
    assert all(parameter.grad is None for parameter in after.model.parameters())
    assert loss(after) == loss(tuned(6, 0, model))
    assert loss(after) != loss(tuned(6, 1, model))


def test_the_temperature_stays_below_the_ceiling_of_clip() -> None:
    model = load_tiny_clip()
    with torch.no_grad():
        model.logit_scale.fill_(MAX_LOGIT_SCALE + 1)
    assert tuned(1, 0, model).model.logit_scale.item() == pytest.approx(MAX_LOGIT_SCALE)
