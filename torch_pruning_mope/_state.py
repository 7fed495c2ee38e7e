"""Leaving the user's model exactly as it was, whatever happens."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; every module's own training flag again afterwards.

    Args:
        model: The model.

    Yields:
        Nothing.
    """
    flags = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, flag in flags.items():
            module.training = flag


@contextmanager
def trainable(model: nn.Module) -> Iterator[None]:
    """``requires_grad`` on for all parameters and autograd on inside; the flags as they were afterwards.

    Args:
        model: The model.

    Yields:
        Nothing.
    """
    flags = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        with torch.inference_mode(False), torch.enable_grad():
            for parameter in flags:
                parameter.requires_grad_(True)
            yield
    finally:
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)


@contextmanager
def own_gradients(model: nn.Module) -> Iterator[None]:
    """No gradients at first inside; the user's ``.grad`` tensors again afterwards.

    Args:
        model: The model.

    Yields:
        Nothing.
    """
    gradients = {parameter: parameter.grad for parameter in model.parameters()}
    try:
        for parameter in gradients:
            parameter.grad = None
        yield
    finally:
        for parameter, gradient in gradients.items():
            parameter.grad = gradient


@contextmanager
def kept_modules(model: nn.Module) -> Iterator[None]:
    """Every module's own attributes, parameters and buffers again afterwards, whatever was cut inside.

    Args:
        model: The model.

    Yields:
        Nothing.
    """
    tables = ("_parameters", "_buffers", "_modules")
    saved = [
        (module, dict(vars(module)), {table: dict(vars(module)[table]) for table in tables})
        for module in model.modules()
    ]
    try:
        yield
    finally:
        for module, attributes, contents in saved:
            vars(module).clear()
            vars(module).update(attributes)
            for table, content in contents.items():
                own = vars(module)[table]
                own.clear()
                own.update(content)


def synchronise(device: torch.device) -> None:
    """Waits for what a device has been given to do, so that a clock sees it.

    Args:
        device: The device.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
