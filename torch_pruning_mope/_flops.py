"""Counting multiply-adds."""

from collections.abc import Callable
from typing import Any

from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def count_multiply_adds(function: Callable[[], Any]) -> int:
    """Multiply-adds of the matrix products, convolutions and attention that a call runs.

    Attention is run as plain products meanwhile: fused kernels for the CPU are not counted by every version of PyTorch.

    Args:
        function: What to call.

    Returns:
        Their number.
    """
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        function()
    return int(counter.get_total_flops()) // 2
