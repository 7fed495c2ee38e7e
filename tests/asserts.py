"""Properties that many tests assert."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from torch_pruning_mope import DualEncoder, Pairs

_HOOKS = [name for name in vars(nn.Module()) if name.endswith("_hooks")]


def assert_close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Equal to within ``tolerance`` of the largest expected magnitude, and finite."""
    assert actual.shape == expected.shape, f"{tuple(actual.shape)} is not {tuple(expected.shape)}"
    actual, expected = actual.detach().double(), expected.detach().double()
    assert torch.isfinite(actual).all()
    error = ((actual - expected).abs().max() / expected.abs().max()).item()
    assert error <= tolerance, f"relative error {error:.2e} > {tolerance:.0e}"


def assert_finite(values: Tensor) -> None:
    assert torch.isfinite(values).all()


def assert_strict_scores(values: Tensor, length: int) -> None:
    """What Torch-Pruning needs of an importance: 1-D, of the group's length, finite."""
    assert values.shape == (length,)
    assert_finite(values)


def assert_trains(encoder: DualEncoder, pairs: Pairs) -> None:
    """A training step works: every parameter that is left has a finite gradient of its shape, and moves."""
    model = encoder.model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    image, text = (
        nn.functional.normalize(encoder.embed(name, inputs), dim=-1)
        for name, inputs in (("image", pairs.images), ("text", pairs.tokens))
    )
    logits = encoder.logit_scale * image @ text.T
    optimizer.zero_grad()
    nn.functional.cross_entropy(logits, torch.arange(len(logits))).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None or not parameter.requires_grad, f"no gradient reaches {name}"
        assert parameter.grad is None or parameter.grad.shape == parameter.shape, f"{name}'s gradient has another shape"
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), f"{name}'s gradient is not finite"
    weights = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer.step()
    assert any(not torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
    model.eval()


def _hook_count(model: nn.Module) -> int:
    return sum(len(getattr(module, name) or ()) for module in model.modules() for name in _HOOKS)


def _facts(model: nn.Module) -> dict[str, Any]:
    """All that an operation which leaves a model alone must leave alone."""
    facts: dict[str, Any] = {"hooks": _hook_count(model), "grad enabled": torch.is_grad_enabled()}
    for name, module in model.named_modules():
        facts[f"{name} type"] = type(module)
        facts[f"{name} identity"] = id(module)
        facts[f"{name} training"] = module.training
        facts[f"{name} attributes"] = sorted(vars(module))
    for name, parameter in model.named_parameters():
        facts[f"{name} parameter"] = (id(parameter), parameter.requires_grad, parameter.dtype, tuple(parameter.shape))
        facts[f"{name} gradient"] = id(parameter.grad) if parameter.grad is not None else None
    return facts


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    tensors = {name: tensor for name, tensor in model.state_dict().items() if not tensor.is_meta}
    tensors |= {f"{name}.grad": p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """The model afterwards is bit-identical: weights, gradients, flags, modules, attributes, number of hooks."""
    facts, tensors = _facts(model), _tensors(model)
    try:
        yield
    finally:
        now, tensors_now = _facts(model), _tensors(model)
        differing = [key for key in facts.keys() | now.keys() if facts.get(key, "absent") != now.get(key, "absent")]
        assert not differing, f"changed: {sorted(differing)[:10]}"
        assert tensors.keys() == tensors_now.keys()
        # Bits, so that NaN equals NaN.
        changed = [name for name in tensors if not torch.equal(_bits(tensors[name]), _bits(tensors_now[name]))]
        assert not changed, f"other values in {changed[:10]}"


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def unchecked(function: Any) -> Any:
    """A function of the package without the run-time type check of the tests, which would refuse wrong types before it."""
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return function
