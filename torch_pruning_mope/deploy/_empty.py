"""Replacements of layers without channels, and of layers that do nothing once training is over."""

import torch
from torch import Tensor, nn


class Constant(nn.Module):
    """Stands in for a linear layer that takes no channels: it puts out its bias for every token."""

    def __init__(self, bias: Tensor) -> None:
        super().__init__()
        self.in_features, self.out_features = 0, len(bias)
        self.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., 0]`` to ``[..., D]``."""
        return self.bias.expand(*x.shape[:-1], -1)

    @property
    def weight(self) -> Tensor:
        """An empty weight; some models ask for its dtype."""
        return self.bias.new_empty(self.out_features, 0)


class Nothing(nn.Module):
    """Stands in for a linear layer that makes no channels."""

    weight: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.in_features, self.out_features = weight.shape[1], 0
        self.register_buffer("weight", weight.detach().clone(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., D]`` to ``[..., 0]``."""
        return x.new_empty(*x.shape[:-1], 0)


def replace_empty(model: nn.Module) -> None:
    """Mutates a model: replaces linear layers without channels by their constant output."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear) and not child.in_features:
                bias = torch.zeros_like(child.weight[:, 0:0].sum(1)) if child.bias is None else child.bias
                setattr(module, name, Constant(bias))
            elif isinstance(child, nn.Linear) and not child.out_features:
                setattr(module, name, Nothing(child.weight))


_TRAINING_ONLY = ("Dropout", "Dropout1d", "Dropout2d", "DropPath", "PatchDropout", "StochasticDepth")


def replace_dropout(model: nn.Module) -> None:
    """Mutates a model in evaluation mode: replaces dropout and its like by identities."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child).__name__ in _TRAINING_ONLY:
                setattr(module, name, nn.Identity())
