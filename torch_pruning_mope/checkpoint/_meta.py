"""Models without weights: built in no time, wrapped, cut to shape, and then given the weights that are left."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils.weak import WeakIdKeyDictionary

from ..errors import MopeError


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
    """The model of a factory in evaluation mode, with its parameters on the ``meta`` device."""
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
