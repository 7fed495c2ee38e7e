"""Multiply-adds of a call: matrix products, convolutions and attention, by PyTorch's own formulas."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from .._state import hooked

Key = TypeVar("Key")


class _Counter(TorchDispatchMode):
    """Adds up what PyTorch's own formulas say of each operation."""

    # ``FlopCounterMode`` counts by module as well, for which it hangs hooks on modules that fail where a module's input is a
    # parameter (a pool's learnt queries) and gradients are off.

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops: int = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        formula = flop_registry.get(func._overloadpacket)
        if formula is None:  # a composite may hold operations that have one
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        result = func(*args, **kwargs)
        if formula is not None:
            self.flops += int(formula(*args, **kwargs, out_val=result))
        return result


@contextmanager
def _counting() -> Iterator[_Counter]:
    """Counts inside; attention is run as plain products, since not every fused kernel has a formula."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), _Counter() as counter:
            yield counter
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def count_multiply_adds(function: Callable[[], Any]) -> int:
    """Multiply-adds of a call. Norms, activations and the softmax are not counted."""
    # Torch-Pruning's count_ops_and_params (1.6.1) looks modules up by their exact class, and so misses both products inside
    # attention, projections that are bare parameters, and out-projections of a subclass of nn.Linear.
    with _counting() as counter:
        function()
    return counter.flops // 2


def multiply_adds_between(
    function: Callable[[], Any], spans: Mapping[Key, tuple[Sequence[nn.Module], nn.Module]]
) -> dict[Key, int]:
    """Multiply-adds of parts of a call that were run."""
    began: dict[Key, int] = {}
    found: dict[Key, int] = {}
    with _counting() as counter, ExitStack() as stack:

        def begin(key: Key, *_: Any) -> None:
            began.setdefault(key, counter.flops)

        def end(key: Key, *_: Any) -> None:
            if key in began:
                found[key] = found.get(key, 0) + (counter.flops - began.pop(key)) // 2

        for key, (first, last) in spans.items():
            stack.enter_context(hooked(first, partial(begin, key), before=True))
            stack.enter_context(hooked([last], partial(end, key)))
        function()
    return found
