"""A layer of any library in parts: its own code, run with some of its output layers replaced.

The input of an output layer is what the code feeds it. What follows from an output is computed by the same code, where the
modules before that output are not run again. So no attention is written twice, whatever stands between.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from .._state import forwards, hooked
from ._look import first_tensor
from ._prunable import Prunable
from ._resume import Reached, returning


class NotInPartsError(Exception):
    """A layer cannot be taken apart this way."""


class Call:
    """The arguments of a layer; the first tensor is the hidden states, others may be one per input.

    Without transformers' caches of keys and values, to which every run would append.
    """

    def __init__(self, args: Any, kwargs: Any) -> None:
        leaves, self._spec = tree_flatten((args, kwargs), is_leaf=_is_cache)
        self.leaves = [None if _is_cache(leaf) else leaf for leaf in leaves]
        self._place = next(place for place, leaf in enumerate(self.leaves) if isinstance(leaf, Tensor))
        self.x = cast("Tensor", self.leaves[self._place])

    def arguments(self, x: Tensor, batched: Mapping[int, bool], times: int) -> Any:
        """Positional and named arguments for other hidden states, of inputs that are repeated."""
        # Of tensors of which nothing is known the length tells whether they grow with the inputs.
        leaves = list(self.leaves)
        for place, leaf in enumerate(leaves):
            if isinstance(leaf, Tensor) and leaf.ndim and batched.get(place, len(leaf) == len(self.x) > 1):
                leaves[place] = repeated(leaf, times)
        leaves[self._place] = x
        return tree_unflatten(leaves, self._spec)


def _is_cache(leaf: Any) -> bool:
    return hasattr(leaf, "get_seq_length")


class Shape:
    """The structure that a module returns around one tensor, by default the first; of further tensors nothing is kept."""

    def __init__(self, output: Any, wanted: Tensor | None = None) -> None:
        leaves, self._spec = tree_flatten(output)
        self._place = next(
            (
                place
                for place, leaf in enumerate(leaves)
                if isinstance(leaf, Tensor) and (wanted is None or _equal(leaf, wanted))
            ),
            None,
        )
        self._leaves = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]

    @property
    def fits(self) -> bool:
        """True if the tensor was among what the module returned."""
        return self._place is not None

    def around(self, tensor: Tensor) -> Any:
        """The same with another tensor."""
        leaves = list(self._leaves)
        leaves[self._place or 0] = tensor
        return tree_unflatten(leaves, self._spec)


class OwnLayer:
    """A residual layer whose sub-layers are entered and left through its own code.

    Args:
        module: The layer.
        units: Of each sub-layer, in the order in which they run.
        call: Arguments that it was seen to be called with.
        batched: Which of its tensors grow with the inputs, by their place.

    Raises:
        NotInPartsError: If it cannot be taken apart.
    """

    def __init__(self, module: nn.Module, units: Sequence[Prunable], call: Call, batched: Mapping[int, bool]) -> None:
        self.module, self.units, self._batched = module, tuple(units), batched
        seen: dict[nn.Module, Any] = {}
        order: list[nn.Module] = []

        def left(module: nn.Module, _args: Any, _kwargs: Any, output: Any) -> None:
            seen[module] = output.clone() if isinstance(output, Tensor) else output
            order.append(module)

        version = call.x._version
        args, kwargs = call.arguments(call.x, {}, 1)
        with hooked(module.modules(), left):
            self.shape = Shape(module(*args, **kwargs))
        if call.x._version != version:
            raise NotInPartsError("the layer changes its input in place")
        outputs = [each.output for each in units]
        if any(order.count(output) != 1 for output in outputs) or outputs[0] != min(outputs, key=order.index):
            raise NotInPartsError("sub-layers do not run once each inside their layer, attention first")
        self._around = [self._holder(each, seen) for each in units]

    def _holder(self, units: Prunable, seen: Mapping[nn.Module, Any]) -> tuple[nn.Module, Shape] | None:
        """The smallest module that holds one sub-layer alone and returns its output; None if there is none."""
        own = {*units.sources, units.output}
        others = {module for each in self.units for module in (*each.sources, each.output)} - own
        holders = [module for module in self.module.modules() if own <= set(module.modules())]
        smallest = min(holders, key=lambda module: len(list(module.modules())), default=self.module)
        if smallest is self.module or smallest not in seen or others & set(smallest.modules()):
            return None
        shape = Shape(seen[smallest], seen[units.output])
        return (smallest, shape) if shape.fits else None

    def _given(self, place: int, out: Tensor) -> list[tuple[nn.Module, Callable[..., Any]]]:
        """Forwards that put ``out`` in the place of what a sub-layer would compute."""
        around, units = self._around[place], self.units[place]
        if around is not None:
            return [(around[0], returning(around[1].around(out)))]
        return [*((source, _nothing(source)) for source in units.sources), (units.output, returning(out))]

    def hidden(self, place: int, x: Tensor, outs: Sequence[Tensor], call: Call, times: int) -> Tensor:
        """The input of an output layer, from the layer's input and the outputs before."""

        def reached(value: Tensor, *_: Any, **__: Any) -> Any:
            raise Reached(value)

        try:
            self.finish(x, outs, call, times, [(self.units[place].output, reached)])
        except Reached as found:
            value: Tensor = found.args[0]
            return value
        raise NotInPartsError("an output layer does not run")

    def finish(
        self,
        x: Tensor,
        outs: Sequence[Tensor],
        call: Call,
        times: int,
        more: Sequence[tuple[nn.Module, Callable[..., Any]]] = (),
    ) -> Tensor:
        """The layer's output, from its input and the outputs of its first sub-layers."""
        args, kwargs = call.arguments(x, self._batched, times)
        with ExitStack() as stack:
            for place, out in enumerate(outs):
                stack.enter_context(forwards(self._given(place, out)))
            stack.enter_context(forwards(more))
            return first_tensor(self.module(*args, **kwargs))


def repeated(tensor: Tensor, times: int) -> Tensor:
    """A tensor of all inputs again and again."""
    return tensor if times == 1 else tensor.repeat(times, *[1] * (tensor.ndim - 1))


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)


def _nothing(source: Any) -> Callable[..., Tensor]:
    """Zeros as wide as what a linear layer makes, which take no memory."""
    return lambda x, *_, **__: x.new_zeros(()).expand(*x.shape[:-1], source.out_features)
