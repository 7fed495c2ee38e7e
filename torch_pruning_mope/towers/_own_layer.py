"""A layer of any library in parts: its own code, run with some of its output layers replaced.

The input of an output layer is what the code feeds it. What follows from an output is computed by the same code, where the
modules before that output are not run again. So no attention is written twice, whatever stands between.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from ._prunable import Prunable


class NotInPartsError(Exception):
    """A layer cannot be taken apart this way."""


class _Reached(Exception):  # noqa: N818 (no error, the way out)
    """A layer has its input; nothing after it matters."""


@contextmanager
def forwards(changes: Sequence[tuple[nn.Module, Callable[..., Any]]]) -> Iterator[None]:
    """Modules with other forwards, and their own again afterwards."""
    before = [(module, vars(module).get("forward")) for module, _ in changes]
    try:
        for module, forward in changes:
            module.forward = forward
        yield
    finally:
        for module, own in before:
            if own is None:
                vars(module).pop("forward", None)
            else:
                module.forward = own


class Call:
    """The arguments of a layer; the first tensor is the hidden states, others may be one per input.

    Args:
        args: Positional arguments.
        kwargs: Named ones.
    """

    def __init__(self, args: Any, kwargs: Any) -> None:
        self.leaves, self.spec = tree_flatten((args, kwargs))
        self.place = next(place for place, leaf in enumerate(self.leaves) if isinstance(leaf, Tensor))

    @property
    def x(self) -> Tensor:
        """The hidden states."""
        found: Tensor = self.leaves[self.place]
        return found

    def arguments(self, x: Tensor, batched: Mapping[int, bool], times: int) -> tuple[Any, Any]:
        """The arguments for other hidden states, of inputs that are repeated.

        ``batched`` says which arguments grow with the inputs; of those that it does not know their length tells.

        Returns:
            Positional and named ones.
        """
        leaves = list(self.leaves)
        leaves[self.place] = x
        if times > 1:
            for place, leaf in enumerate(self.leaves):
                if not isinstance(leaf, Tensor) or place == self.place or not leaf.ndim:
                    continue
                if batched.get(place, len(leaf) == len(self.x) > 1):
                    leaves[place] = leaf.repeat(times, *[1] * (leaf.ndim - 1))
        found: tuple[Any, Any] = tree_unflatten(leaves, self.spec)
        return found


class Shape:
    """What a module returns besides one of its tensors."""

    def __init__(self, output: Any, wanted: Tensor | None = None) -> None:
        leaves, self._spec = tree_flatten(output)
        tensors = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        if wanted is not None:
            tensors = [place for place in tensors if _equal(leaves[place], wanted)] or [-1]
        if not tensors or tensors[0] < 0:
            raise NotInPartsError("a module does not return what its output layer makes")
        self._place = tensors[0]
        self._leaves = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]

    def with_tensor(self, tensor: Tensor) -> Any:
        """The same with another tensor; of further tensors nothing is kept."""
        leaves = list(self._leaves)
        leaves[self._place] = tensor
        return tree_unflatten(leaves, self._spec)


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)


@dataclass
class _Stub:
    """How the output of one sub-layer is given: modules that are not run, and what they return instead.

    Attributes:
        output: The output layer.
        around: The module that holds all of the sub-layer and returns its output; None if there is none.
        shape: What that returns.
        before: Modules that hold its sources alone, what they return, and one of the sources.
    """

    output: nn.Module
    around: nn.Module | None
    shape: Shape | None
    before: list[tuple[nn.Module, Shape, nn.Module]]

    def given(self, out: Tensor) -> list[tuple[nn.Module, Callable[..., Any]]]:
        """Forwards that put ``out`` in the place of what the sub-layer would compute."""
        if self.around is not None and self.shape is not None:
            whole = self.shape.with_tensor(out)
            return [(self.around, lambda *_, **__: whole)]
        skipped: list[tuple[nn.Module, Callable[..., Any]]] = [
            (module, _nothing(shape, source)) for module, shape, source in self.before
        ]
        return [*skipped, (self.output, lambda *_, **__: out)]


def _nothing(shape: Shape, source: Any) -> Callable[..., Any]:
    """What a module returns, with zeros as wide as what a source makes, which take no memory."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        x = next(leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor))
        return shape.with_tensor(x.new_zeros(()).expand(*x.shape[:-1], source.out_features))

    return forward


class OwnLayer:
    """A residual layer whose sub-layers are entered and left through its own code.

    Args:
        module: The layer.
        units: Of each sub-layer, in the order in which they run.
        call: Arguments that it was seen to be called with.

    Raises:
        NotInPartsError: If it cannot be taken apart.
    """

    def __init__(self, module: nn.Module, units: Sequence[Prunable], call: Call) -> None:
        self.module, self.units = module, tuple(units)
        self.batched: dict[int, bool] = {}
        names = {each: name for name, each in module.named_modules()}
        layers = [{*each.sources, each.output} for each in units]
        if not all(names.keys() >= each for each in layers):
            raise NotInPartsError("units lie outside of their layer")
        seen: dict[nn.Module, Any] = {}
        order: list[nn.Module] = []

        def left(module: nn.Module, _args: Any, output: Any) -> None:
            seen[module] = output.clone() if isinstance(output, Tensor) else output
            order.append(module)

        handles = [each.register_forward_hook(left) for each in names]
        version = call.x._version
        try:
            args, kwargs = call.arguments(call.x, {}, 1)
            self.output = module(*args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()
        if call.x._version != version:
            raise NotInPartsError("the layer changes its input in place")
        outputs = [each.output for each in units]
        if any(order.count(output) != 1 for output in outputs) or order.index(outputs[0]) != min(
            map(order.index, outputs)
        ):
            raise NotInPartsError("sub-layers do not run once each, attention first")
        self.shape = Shape(self.output)
        self._stubs = [self._stub(each, layers, names, seen, order) for each in units]

    def _stub(
        self,
        units: Prunable,
        layers: Sequence[set[nn.Module]],
        names: dict[nn.Module, str],
        seen: dict[nn.Module, Any],
        order: Sequence[nn.Module],
    ) -> _Stub:
        own = {*units.sources, units.output}
        others = {module for layer in layers for module in layer if module not in own}
        around = _smallest(own, others, names, self.module)
        if around is not None and around in seen:
            try:
                return _Stub(units.output, around, Shape(seen[around], seen[units.output]), [])
            except NotInPartsError:
                pass  # something follows the output layer inside; what comes before it is skipped instead
        before = {_largest(source, units.output, others, names, self.module): source for source in units.sources}
        if any(module not in seen for module in before):
            before = {source: source for source in units.sources if source in order}
        skipped = [(module, Shape(seen[module]), source) for module, source in before.items()]
        return _Stub(units.output, None, None, skipped)

    def hidden(self, place: int, x: Tensor, outs: Sequence[Tensor], call: Call, times: int) -> Tensor:
        """The input of an output layer, from the layer's input and the outputs before."""

        def reached(value: Tensor, *_: Any, **__: Any) -> Any:
            raise _Reached(value)

        try:
            self._run(x, outs, call, times, [(self.units[place].output, reached)])
        except _Reached as found:
            value: Tensor = found.args[0]
            return value
        raise NotInPartsError("an output layer does not run")

    def finish(self, x: Tensor, outs: Sequence[Tensor], call: Call, times: int) -> Tensor:
        """The layer's output, from its input and all outputs inside."""
        return first(self._run(x, outs, call, times, []))

    def whole(self, x: Tensor, call: Call, times: int) -> Tensor:
        """The layer's output."""
        return first(self._run(x, (), call, times, []))

    def _run(self, x: Tensor, outs: Sequence[Tensor], call: Call, times: int, more: list[Any]) -> Any:
        args, kwargs = call.arguments(x, self.batched, times)
        with ExitStack() as stack:
            for stub, out in zip(self._stubs, outs, strict=False):
                stack.enter_context(forwards(stub.given(out)))
            stack.enter_context(forwards(more))
            return self.module(*args, **kwargs)


def first(output: Any) -> Tensor:
    """The first tensor that a layer returns."""
    found: Tensor = next(leaf for leaf in tree_flatten(output)[0] if isinstance(leaf, Tensor))
    return found


def _smallest(
    own: set[nn.Module], others: set[nn.Module], names: dict[nn.Module, str], layer: nn.Module
) -> nn.Module | None:
    """The smallest module inside a layer that holds some modules and none of others."""
    for module in sorted(names, key=lambda each: -names[each].count(".") - bool(names[each])):
        inside = set(module.modules())
        if module is not layer and inside >= own:
            return None if inside & others else module
    return None


def _largest(
    source: nn.Module, output: nn.Module, others: set[nn.Module], names: dict[nn.Module, str], layer: nn.Module
) -> nn.Module:
    """The largest module inside a layer that holds a source and not its output layer."""
    by_name = {name: module for module, name in names.items()}
    best, name = source, names[source]
    while name := name.rpartition(".")[0]:
        module = by_name[name]
        inside = set(module.modules())
        if module is layer or output in inside or inside & others:
            break
        best = module
    return best
