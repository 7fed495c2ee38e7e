"""Models without weights: built in no time, wrapped, cut to shape, and then given the weights that are left."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils.weak import WeakIdKeyDictionary

from ..errors import ModelLoadError, MopeError

_MOST_TIMES = 4096
"""Parameters of the base for each that is left."""
_LEAST = 2**22
_MOST_FILLED = 2**25
"""Numbers that a constructor fills in memory: parameters of its own and buffers, of one module."""
_LAZY = (nn.Linear, nn.Embedding, nn.modules.conv._ConvNd, nn.MultiheadAttention)
"""These allocate parameters before they fill them, which :func:`parameters_on_meta` prevents."""


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Inside, modules register their parameters on the ``meta`` device, so that none is filled; buffers are real.

    Buffers that state dicts do not hold (masks, rotary tables) are thus what the model's own code makes them.
    """
    twins: Any = WeakIdKeyDictionary()  # a parameter that is registered twice stays one

    def move(_module: nn.Module, _name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or parameter.is_meta:
            return None
        if parameter not in twins:
            twins[parameter] = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
        twin: nn.Parameter = twins[parameter]
        return twin

    handle = register_module_parameter_registration_hook(move)  # type: ignore[arg-type]  # (torch forgets what it may return)
    try:
        yield
    finally:
        handle.remove()


def build(factory: Callable[[], nn.Module]) -> nn.Module:
    """Returns the model of a factory in evaluation mode, with its parameters on the ``meta`` device."""
    with parameters_on_meta(), torch.random.fork_rng(devices=[]):
        return factory().eval()


class Buffers:
    """Mutates a model: moves its buffers to the ``meta`` device, until they are put back."""

    def __init__(self, model: nn.Module) -> None:
        self._real: dict[int, tuple[Tensor, Tensor]] = {}
        twins: dict[int, Tensor] = {}
        for module in model.modules():
            for name, buffer in module._buffers.items():
                if buffer is not None and not buffer.is_meta:
                    twin = twins.setdefault(id(buffer), buffer.to("meta"))
                    module._buffers[name] = twin
                    self._real[id(twin)] = (twin, buffer)

    def put_back(self, model: nn.Module) -> None:
        """Mutates the model: puts all buffers where their twins now are, in modules that replaced others too."""
        for module in model.modules():
            for name, buffer in module._buffers.items():
                if id(buffer) in self._real:
                    module._buffers[name] = self._real[id(buffer)][1]


def wrap(model: nn.Module, wrapper: Callable[[nn.Module], Any]) -> tuple[Any, Buffers | None]:
    """Mutates a model of parameters on ``meta``: wraps it, on ``meta`` too if it can; returns the buffers to put back if so."""
    buffers = Buffers(model)
    try:
        return wrapper(model), buffers
    except MopeError:
        raise
    except (NotImplementedError, RuntimeError):
        buffers.put_back(model)
    # Text encoders of Hugging Face look at numbers as they run. Zeros take no memory until they are read.
    zeros: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_meta:
                if id(parameter) not in zeros:
                    zero = torch.zeros(parameter.shape, dtype=parameter.dtype)
                    zeros[id(parameter)] = nn.Parameter(zero, parameter.requires_grad)
                module._parameters[name] = zeros[id(parameter)]
    return wrapper(model), None


def check_size(probe: nn.Module, left: int) -> None:
    """Checks what building a model takes, on one of the ``meta`` device."""
    most = max(_LEAST, _MOST_TIMES * left)
    total, filled = 0, 0
    for module in probe.modules():
        own = sum(parameter.numel() for parameter in module._parameters.values() if parameter is not None)
        buffers = sum(buffer.numel() for buffer in module._buffers.values() if buffer is not None)
        total += own
        filled = max(filled, 0 if isinstance(module, _LAZY) else own)
        filled = max(filled, buffers)
    for name, found, bound in (("parameters", total, most), ("filled numbers in a layer", filled, _MOST_FILLED)):
        if found > bound:
            raise ModelLoadError(
                f"base.architecture must be of a model with at most {bound} {name} to be cut to {left} parameters; found "
                f"{found}."
            )


def probe_of(factory: Any) -> nn.Module:
    """Returns the model that a factory builds, wholly on the ``meta`` device: in no memory, whatever its size."""
    with torch.device("meta"):
        model: nn.Module = factory()
    return model
