"""The three context managers restore everything, however they are left."""

from typing import Any

import pytest
import torch
from torch import nn

from tests.asserts import unchanged
from torch_pruning_mope._state import evaluation_mode, own_gradients, trainable


@pytest.fixture
def model() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
    model.train()
    model[1].eval()
    model[2][1].eval()  # type: ignore[index]
    model[0].weight.requires_grad_(False)  # type: ignore[operator, union-attr]
    model[2][0].weight.grad = torch.ones(2, 2)  # type: ignore[index]
    return model


@pytest.mark.parametrize("manager", [evaluation_mode, trainable, own_gradients])
def test_everything_is_restored(model: nn.Sequential, manager: Any) -> None:
    with unchanged(model), manager(model):
        model(torch.randn(3, 2)).sum()
    with unchanged(model), pytest.raises(KeyError), manager(model):
        raise KeyError


def test_evaluation_mode(model: nn.Sequential) -> None:
    with evaluation_mode(model):
        assert not any(module.training for module in model.modules())


def test_trainable(model: nn.Sequential) -> None:
    with torch.no_grad(), trainable(model):
        assert torch.is_grad_enabled()
        assert all(parameter.requires_grad for parameter in model.parameters())
        assert model(torch.randn(3, 2)).requires_grad
    with torch.inference_mode(), trainable(model):
        assert not torch.is_inference_mode_enabled()


def test_own_gradients(model: nn.Sequential) -> None:
    users = model[2][0].weight.grad  # type: ignore[index]
    with own_gradients(model):
        assert all(parameter.grad is None for parameter in model.parameters())
        model(torch.randn(3, 2)).sum().backward()
        assert model[2][0].weight.grad is not None  # type: ignore[index]
    assert model[2][0].weight.grad is users  # type: ignore[index]
    assert model[0].bias.grad is None
