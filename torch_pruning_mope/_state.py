"""Temporary changes of a user's model, undone on every path, by one thread at a time."""

import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

_LOCKS: weakref.WeakKeyDictionary[nn.Module, threading.RLock] = weakref.WeakKeyDictionary()
_GUARD = threading.Lock()


@contextmanager
def exclusive(model: nn.Module) -> Iterator[None]:
    """One thread at a time inside, for each model; the others wait. A thread may enter again.

    Everything that changes a model for a while holds this: hooks, flags and cuts of one thread would be in the results of
    another. Under ``torch.compile`` and ``torch.export`` nothing is locked.
    """
    if torch.compiler.is_compiling():
        yield
        return
    with _GUARD:
        lock = _LOCKS.setdefault(model, threading.RLock())
    with lock:
        yield


@contextmanager
def _kept_training(model: nn.Module) -> Iterator[None]:
    """Every module's own training flag again afterwards."""
    flags = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, flag in flags.items():
            module.training = flag


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; every module's own training flag again afterwards."""
    with exclusive(model), _kept_training(model):
        model.eval()
        yield


@contextmanager
def without_tables(model: nn.Module) -> Iterator[None]:
    """Drops afterwards what some of timm's models keep of a run, its autograd graph included, until they are trained."""
    with _kept_training(model):
        try:
            yield
        finally:
            model.train()


@contextmanager
def trainable(model: nn.Module) -> Iterator[None]:
    """``requires_grad`` on for all parameters and autograd on inside; the flags as they were afterwards."""
    with exclusive(model):
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
def kept_flags(model: nn.Module) -> Iterator[None]:
    """``requires_grad`` of every parameter by its name again afterwards: Torch-Pruning's new parameters are all trainable."""
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    try:
        yield
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(flags[name])


@contextmanager
def own_gradients(model: nn.Module) -> Iterator[None]:
    """No gradients at first inside; the user's ``.grad`` tensors again afterwards."""
    with exclusive(model):
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
    """Every module's own attributes, parameters and buffers again afterwards, whatever was cut inside."""
    tables = ("_parameters", "_buffers", "_modules")
    with exclusive(model):
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
    """Waits until a device has done its work, for timing."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


@contextmanager
def hooked(modules: Iterable[nn.Module], hook: Callable[..., Any], *, before: bool = False) -> Iterator[None]:
    """Inside, modules call a hook with themselves, arguments, named arguments and the output, or none before they run."""
    register = nn.Module.register_forward_pre_hook if before else nn.Module.register_forward_hook
    handles = [register(module, hook, with_kwargs=True) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def forwards(changes: Iterable[tuple[nn.Module, Callable[..., Any]]]) -> Iterator[None]:
    """Inside, modules have other forwards."""
    changed: list[tuple[nn.Module, Any]] = []
    try:
        for module, forward in changes:
            changed.append((module, vars(module).get("forward")))
            module.forward = forward
        yield
    finally:
        for module, own in reversed(changed):
            if own is None:
                vars(module).pop("forward", None)
            else:
                module.forward = own
