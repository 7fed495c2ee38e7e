"""Bounds on the base of a checkpoint, by the size of the weights that came with it."""

from typing import Any

import torch
from torch import nn

from ..errors import ModelLoadError

_MOST_TIMES = 4096
"""Parameters of the base for each that is left."""
_LEAST = 2**22
_MOST_FILLED = 2**25
"""Numbers that a constructor fills in memory: parameters of its own and buffers, of one module."""
_LAZY = (nn.Linear, nn.Embedding, nn.modules.conv._ConvNd, nn.MultiheadAttention)
"""These allocate parameters before they fill them, which :func:`parameters_on_meta` prevents."""


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
    """The model that a factory builds, wholly on the ``meta`` device: in no memory, whatever its size."""
    with torch.device("meta"):
        model: nn.Module = factory()
    return model
