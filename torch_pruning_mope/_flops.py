"""Counting multiply-adds."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

Key = TypeVar("Key")


class _Counter(TorchDispatchMode):
    """Adds up what PyTorch's own formulas say of each operation.

    ``FlopCounterMode`` counts by module as well, for which it hangs hooks on modules that fail where a module's input is a
    parameter (a pool's learnt queries) and gradients are off.
    """

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


def count_multiply_adds(function: Callable[[], Any]) -> int:
    """Multiply-adds of the matrix products, convolutions and attention that a call runs.

    Attention is run as plain products meanwhile: fused kernels for the CPU are not counted by every version of PyTorch.

    Args:
        function: What to call.

    Returns:
        Their number.
    """
    with sdpa_kernel(SDPBackend.MATH), _Counter() as counter:
        function()
    multiply_adds: int = counter.flops // 2
    return multiply_adds


def multiply_adds_between(
    function: Callable[[], Any], spans: Mapping[Key, tuple[Sequence[nn.Module], nn.Module]]
) -> dict[Key, int]:
    """Multiply-adds of parts of a call.

    Args:
        function: What to call.
        spans: By name, modules that a part begins with, whichever runs first, and the module that it ends with.

    Returns:
        Their number for every part that was run.
    """
    began: dict[Key, int] = {}
    found: dict[Key, int] = {}
    handles = []
    counter = _Counter()

    def begin(key: Key) -> None:
        began.setdefault(key, counter.flops)

    def end(key: Key) -> None:
        if key in began:
            found[key] = found.get(key, 0) + (counter.flops - began.pop(key)) // 2

    try:
        for key, (first, last) in spans.items():
            handles += [module.register_forward_pre_hook(lambda *_, key=key: begin(key)) for module in first]
            handles.append(last.register_forward_hook(lambda *_, key=key: end(key)))
        with sdpa_kernel(SDPBackend.MATH), counter:
            function()
    finally:
        for handle in handles:
            handle.remove()
    return found
