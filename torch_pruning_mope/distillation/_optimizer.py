"""Learning rates, optimizer and moving average of a training."""

import math
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


def schedule(step: int, steps: int, warmup: float) -> float:
    """Share of the highest learning rate: a linear rise over ``warmup`` of the steps, then half a cosine."""
    rising = max(1, round(warmup * steps))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def adamw(model: nn.Module, learning_rate: float, betas: tuple[float, float], weight_decay: float) -> torch.optim.AdamW:
    """AdamW of the parameters that require gradients; biases, norms and the temperature do not decay."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [parameter for parameter in trained if parameter.ndim > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trained if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas)


def averaged(model: nn.Module, decay: float | None) -> AveragedModel | None:
    """Exponential moving average of a model's weights, from those after the first step on."""
    return None if decay is None else AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))


@torch.no_grad()
def take_average(model: nn.Module, average: AveragedModel | None) -> None:
    """Mutates ``model``: its weights become their average, if there is one."""
    if average is not None:
        for own, mean in zip(model.parameters(), average.module.parameters(), strict=True):
            own.copy_(mean)
