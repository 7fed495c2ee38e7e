"""Wall-clock time of a call."""

import statistics
import time
from collections.abc import Callable

import torch

from .._state import synchronise


def median_seconds(
    function: Callable[[], object], device: torch.device, *, repeats: int = 15, warm_up: int = 2
) -> float:
    """Median seconds of a call, all work of the device included, after some calls that are not timed."""
    times = []
    for _ in range(warm_up + repeats):
        synchronise(device)
        began = time.perf_counter()
        function()
        synchronise(device)
        times.append(time.perf_counter() - began)
    return statistics.median(times[warm_up:])
