"""Units of modules that keep their own code: no forward is written again, only fused layers are taken apart."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

_NAME = "prunable_parts"
_SEALED = "sealed_parts"
"""Plain attributes of a module, so that they go where the module goes, into copies too."""


@dataclass(eq=False)
class Parts:
    """Units that were found by the structure of a module, and tried.

    Attributes:
        kind: What they are.
        sources: The layers that make their channels.
        output: The layer that takes them.
        unit_size: Channels per unit that the output takes; projections that heads share make fewer.
        counted: The module whose attributes hold how many there are.
        counts: These attributes, each with the channels that it counts as one.
        shown: Whether Torch-Pruning is shown that the channels of the sources reach the output, and nothing in between.
    """

    kind: Literal["head", "neurons"]
    sources: tuple[nn.Module, ...]
    output: nn.Module
    unit_size: int
    counted: nn.Module | None = None
    counts: tuple[tuple[str, int], ...] = ()
    shown: bool = False


def parts_of(module: nn.Module) -> list[Parts]:
    """Returns the parts found of a module."""
    found: list[Parts] = vars(module).get(_NAME, [])
    return found


def attach(module: nn.Module, parts: Parts) -> Callable[[], None]:
    """Mutates a module: notes that it has these units; its counts follow its layers from now on."""
    setattr(module, _NAME, [*parts_of(module), parts])
    counted = parts.counted
    before = {} if counted is None else {name: getattr(counted, name) for name, _ in parts.counts}
    handle = None if counted is None or not parts.counts else counted.register_forward_pre_hook(_recount)
    if handle is not None and counted is not None:
        counted.counted_parts = parts  # type: ignore[assignment]

    def detach() -> None:
        left = [each for each in parts_of(module) if each is not parts]
        if left:
            setattr(module, _NAME, left)
        else:
            vars(module).pop(_NAME, None)
        if handle is not None and counted is not None:
            handle.remove()
            del counted.counted_parts
            for name, value in before.items():
                setattr(counted, name, value)

    return detach


def _recount(module: Any, _args: Any) -> None:
    """Sets the numbers that a module's code reads to what its layers have left."""
    parts = module.counted_parts
    channels = parts.sources[0].out_features
    for name, size in parts.counts:
        if getattr(module, name) != channels // size:
            setattr(module, name, channels // size)


def seal(module: nn.Module, sources: Sequence[nn.Module], output: nn.Module) -> Callable[[], None]:
    """Mutates a module: Torch-Pruning is not shown what is between these layers, whose channels are not to be cut.

    Where heads share keys, Torch-Pruning would search the groups of their channels without end.

    Returns:
        Undoes it.
    """
    setattr(module, _SEALED, (tuple(sources), output))
    return lambda: delattr(module, _SEALED)


@contextmanager
def showing(model: nn.Module) -> Iterator[None]:
    """Inside, the input of output layers is an elementwise function of what their sources make, whatever the code does."""
    with ExitStack() as stack:
        for module in model.modules():
            for parts in parts_of(module):
                if parts.shown:
                    for handle in _show(parts.sources, parts.output):
                        stack.callback(handle.remove)
            if _SEALED in vars(module):
                for handle in _show(*getattr(module, _SEALED), sealed=True):
                    stack.callback(handle.remove)
        yield


def _show(sources: Sequence[nn.Module], output: nn.Module, *, sealed: bool = False) -> list[Any]:
    made: dict[int, Tensor] = {}

    def keep(place: int) -> Any:
        return lambda _module, _args, output: made.__setitem__(place, output)

    def replace(_module: nn.Module, args: tuple[Any, ...]) -> Any:
        if len(made) < len(sources):
            return None
        # One number per channel: positions and heads play no part in which channels go together.
        channels: list[Tensor] = []
        for place, x in made.items():
            layer, each = sources[place], x.mean() if sealed else x.mean(tuple(range(x.ndim - 1)))
            if isinstance(layer, SharedProjection):
                # First: Torch-Pruning then comes upon the queries before these, and takes the size of a head from them.
                channels.insert(0, _Spread.apply(each, layer))
            else:
                channels.append(each)
        made.clear()
        total = sum(channels[1:], channels[0])
        return (total + torch.zeros_like(args[0]), *args[1:])

    handles = [source.register_forward_hook(keep(place)) for place, source in enumerate(sources)]
    return [*handles, output.register_forward_pre_hook(replace)]


class SharedProjection(nn.Linear):
    """Keys or values of heads in groups, each shared by the heads of one: to Torch-Pruning, as wide as the heads together."""

    sharing: int
    size: int

    def own_channels(self, channels: Sequence[int]) -> list[int]:
        """The channels of the layer that heads see as these; all heads of a group see the same."""
        group = self.size * self.sharing
        return sorted({channel // group * self.size + channel % self.size for channel in channels})


def share(layer: Any, sharing: int, size: int) -> Callable[[], None]:
    """Mutates a linear layer: it is one that ``sharing`` heads of ``size`` channels each share; returns what undoes it."""
    before = type(layer)
    layer.__class__, layer.sharing, layer.size = SharedProjection, sharing, size

    def undo() -> None:
        layer.__class__ = before
        del layer.sharing, layer.size

    return undo


class _Spread(torch.autograd.Function):
    """Channels as heads see them, in one node of the graph, through which Torch-Pruning follows each to itself."""

    @staticmethod
    def forward(_: Any, x: Tensor, layer: SharedProjection) -> Tensor:
        """Repeats each group."""
        return x.view(-1, 1, layer.size).expand(-1, layer.sharing, -1).flatten()

    @staticmethod
    def backward(_: Any, *__: Tensor) -> Any:
        """Never runs: Torch-Pruning reads the graph alone."""
        raise NotImplementedError


class FusedLinear(nn.Module):
    """Stands in for a linear layer whose output is several of one size side by side, each a layer of its own here."""

    def __init__(self, linear: nn.Linear, names: Sequence[str]) -> None:
        super().__init__()
        self.names = tuple(names)
        rows = linear.weight.chunk(len(names))
        biases = [None] * len(names) if linear.bias is None else linear.bias.chunk(len(names))
        for name, weight, bias in zip(names, rows, biases, strict=True):
            with torch.device("meta"):
                part = nn.Linear(linear.in_features, len(weight), bias=bias is not None)
            part.weight = nn.Parameter(weight.detach().clone(), requires_grad=linear.weight.requires_grad)
            if bias is not None:
                part.bias = nn.Parameter(bias.detach().clone(), requires_grad=linear.bias.requires_grad)
            setattr(self, name, part)
        self.train(linear.training)
        self.register_load_state_dict_pre_hook(_split)  # type: ignore[no-untyped-call]

    @property
    def parts(self) -> tuple[nn.Linear, ...]:
        """The layers."""
        return tuple(getattr(self, name) for name in self.names)

    @property
    def weight(self) -> Tensor:
        """The rows of all layers, for code that reads them."""
        return torch.cat([part.weight for part in self.parts])

    @property
    def bias(self) -> Tensor | None:
        """Their biases, if they have any."""
        biases: list[Tensor] = [part.bias for part in self.parts if part.bias is not None]
        return torch.cat(biases) if biases else None

    def forward(self, x: Tensor) -> Tensor:
        """All of them, side by side."""
        return torch.cat([part(x) for part in self.parts], -1)


def _split(module: Any, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """A load_state_dict pre-hook: takes the fused tensors of an original checkpoint apart."""
    for suffix in ("weight", "bias"):
        tensor = state.pop(f"{prefix}{suffix}", None)
        if tensor is not None:
            sizes = [part.out_features for part in module.parts]
            parts = zip(module.names, tensor.split(sizes) if sum(sizes) == len(tensor) else [], strict=False)
            state.update({f"{prefix}{name}.{suffix}": part for name, part in parts})
