"""A tower that is run by its own code and still taken apart into sub-layers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from .._state import evaluation_mode
from ._opaque import OpaqueTower
from ._own_layer import Call, NotInPartsError, OwnLayer, Shape, first, forwards
from ._prunable import Prunable
from ._sublayers import Stream, Sublayer
from ._tower import Block, Tower

_PROBED = 256
"""Inputs whose pooled token is looked for at once."""


@dataclass(frozen=True)
class Context:
    """What the layers of a run are called with besides hidden states.

    Attributes:
        inputs: The inputs of the encoder.
        calls: Of each layer.
        pooled: Which token of each input is pooled, before anything was narrowed; None if several are.
        tokens: Tokens of each input, likewise.
        times: How many times the inputs are repeated.
    """

    inputs: Tensor
    calls: dict[nn.Module, Call]
    pooled: Tensor | None
    tokens: int
    times: int = 1


class OwnSublayer(Sublayer):
    """A sub-layer of an :class:`OwnLayer`."""

    def __init__(self, layer: OwnLayer, place: int, *, mixes_tokens: bool) -> None:
        self._layer, self._place, self.mixes_tokens = layer, place, mixes_tokens

    @property
    def _units(self) -> Prunable:
        return self._layer.units[self._place]

    @property
    def sources(self) -> Sequence[nn.Module]:
        """The layers that make the units."""
        return self._units.sources

    @property
    def output(self) -> nn.Linear:
        """The layer that takes them."""
        return cast("nn.Linear", self._units.output)

    @property
    def unit_size(self) -> int:
        """Channels per unit."""
        return self._units.unit_size

    @property
    def can_be_empty(self) -> bool:
        """As the units have it."""
        return self._units.can_be_empty

    def hidden(self, stream: Stream, *, pooled_only: bool = False) -> Float[Tensor, "N T U"]:
        """The input of the output layer, as the layer's own code makes it."""
        if pooled_only and not self.mixes_tokens:
            stream = stream.narrow()
        context: Context = stream.context
        call = context.calls[self._layer.module]
        found = self._layer.hidden(self._place, stream.x, stream.outs, call, context.times)
        if pooled_only and found.shape[1] > 1:
            found = stream.pooled_rows(found)
        return found

    def finish(self, stream: Stream, out: Float[Tensor, "N T D"]) -> Stream:
        """The output is kept until the last of the layer, whose code then puts all of them together."""
        outs = (*stream.outs, out)
        if len(outs) < len(self._layer.units):
            return replace(stream, outs=outs)
        context: Context = stream.context
        call = context.calls[self._layer.module]
        return replace(stream, x=self._layer.finish(stream.x, outs, call, context.times), outs=())


class ApartTower(OpaqueTower, Tower):
    """An encoder that is entered and left at its sub-layers, all by its own code.

    Args:
        tower: The encoder.
        layers: Its layers, in parts.
        mixing: Types of units whose sub-layers mix tokens.
        quiet: Modules before the first layer that need not run again to read the last one's output.
        narrows: Whether outputs of sub-layers are put together token by token.
        cuts: Whether inputs may end with their pooled token.
    """

    keeps_stream = False

    def __init__(
        self,
        tower: OpaqueTower,
        layers: dict[nn.Module, OwnLayer],
        mixing: Sequence[str],
        quiet: Sequence[nn.Module],
        *,
        narrows: bool,
        cuts: bool = False,
    ) -> None:
        vars(self).update(vars(tower))
        self._own, self._mixing, self._quiet = layers, tuple(mixing), tuple(quiet)
        self._narrows, self.cuts = narrows, cuts

    @property
    def found(self) -> dict[str, Any]:
        """What makes the same tower again."""
        own = {"layers": self._own, "mixing": self._mixing, "quiet": self._quiet}
        return own | {"narrows": self._narrows, "cuts": self.cuts}

    @property
    def blocks(self) -> Sequence[Block]:
        """The layers in parts, then what runs with the readout."""
        return [self._in_parts(block) for block in super().blocks]

    def _in_parts(self, block: Block) -> Block:
        layer = self._own.get(block.module)
        if layer is None:
            return block
        parts = [
            OwnSublayer(layer, place, mixes_tokens=kind in self._mixing)
            for place, kind in enumerate(
                kind
                for kind, units in (("head", block.attention), ("neurons", block.feed_forward))
                if units is not None
            )
        ]
        attention = None if block.attention is None else parts.pop(0)
        return Block(block.module, attention, parts.pop(0) if parts else None, block.siblings)

    def _modules(self) -> list[nn.Module]:
        """The layers that are left, in the order in which they run."""
        return [module for module in dict.fromkeys(block.module for block in super().blocks) if module in self._own]

    def stem(self, inputs: Tensor) -> Stream:
        """What the first layer is called with, by a run in which the layers pass on what they get."""
        modules = self._modules()
        calls = passed_on(self, inputs, {module: self._own[module].shape for module in modules})
        x = calls[modules[0]].x
        pooled = self._pooled(inputs, x) if self._narrows else None
        return Stream(x, None, pooled, (), Context(inputs, calls, pooled, x.shape[1]))

    def _pooled(self, inputs: Tensor, x: Tensor) -> Int[Tensor, "N"] | None:
        """The one token of each input whose last state reaches the embedding, by its gradient; None if there are several."""
        with torch.inference_mode(False), torch.enable_grad():
            probe = torch.randn(x.shape, dtype=x.dtype, device=x.device).requires_grad_()
            embeddings = self._read(inputs.clone(), probe, len(inputs))
            weights = torch.randn(embeddings.shape, dtype=embeddings.dtype, device=embeddings.device)
            (gradient,) = torch.autograd.grad((embeddings * weights).sum(), [probe])
        if probe.ndim != 3:
            return None
        reached = gradient.ne(0).any(-1)
        return reached.int().argmax(1) if bool((reached.sum(1) == 1).all()) else None

    def _read(self, inputs: Tensor, x: Tensor, count: int) -> Tensor:
        """From the last layer's output to the embeddings, by a run in which all layers put it out."""
        if len(inputs) != count:
            if self._quiet and inputs.is_floating_point():
                inputs = inputs[:1].expand(count, *inputs.shape[1:])
            else:
                inputs = inputs.repeat(count // len(inputs), *[1] * (inputs.ndim - 1))
        given = [(module, _returns(self._own[module].shape.with_tensor(x))) for module in self._modules()]
        with forwards([*given, *((module, _silent(module)) for module in self._quiet)]):
            found: Tensor = self.encode(inputs)
        return found

    def readout(self, stream: Stream) -> Float[Tensor, "N J"]:
        """The model's own pooling and projection; a narrowed stream stands in all places, of which one is read."""
        context: Context = stream.context
        x = stream.x
        if x.ndim == 3 and x.shape[1] == 1 < context.tokens:
            x = x.expand(-1, context.tokens, -1)
        return self._read(context.inputs, x, len(x))

    def lengths(self, inputs: Tensor) -> Int[Tensor, "N"] | None:
        """Under a causal mask nothing after the pooled token can reach it."""
        if not self.cuts:
            return None
        found = [self.stem(part.to(self._device())).pooled for part in inputs.split(_PROBED)]
        if any(each is None for each in found):
            return None
        return torch.cat(cast("list[Tensor]", found)) + 1

    def _device(self) -> torch.device:
        device: torch.device = next(self.root.parameters()).device
        return device


def named(block: Block) -> list[tuple[str, Prunable]]:
    """The units of a block, each with what they are."""
    both = ("head", block.attention), ("neurons", block.feed_forward)
    return [(kind, units) for kind, units in both if units is not None]


def passed_on(tower: OpaqueTower, inputs: Tensor, shapes: dict[nn.Module, Shape]) -> dict[nn.Module, Call]:
    """What layers are called with, in a run in which they pass on what they get."""
    calls: dict[nn.Module, Call] = {}

    def passes(module: nn.Module, shape: Shape) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            call = calls[module] = Call(args, kwargs)
            return shape.with_tensor(call.x)

        return forward

    with forwards([(module, passes(module, shape)) for module, shape in shapes.items()]):
        tower.encode(inputs)
    return calls


def _returns(value: Any) -> Callable[..., Any]:
    return lambda *_, **__: value


def _silent(module: Any) -> Callable[..., Tensor]:
    """Zeros of the shape of a layer's output, which takes no memory."""

    def forward(x: Tensor, *_: Any, **__: Any) -> Tensor:
        weight: Tensor = module.weight
        if isinstance(module, nn.Embedding):
            shape: tuple[int, ...] = (*x.shape, module.embedding_dim)
        elif isinstance(module, nn.Linear):
            shape = (*x.shape[:-1], module.out_features)
        else:
            sides = [_side(module, axis, int(side)) for axis, side in enumerate(x.shape[2:])]
            shape = (len(x), module.out_channels, *sides)
        return weight.new_zeros(()).expand(shape)

    return forward


def _side(convolution: nn.Conv2d, axis: int, side: int) -> int:
    padding: Any = convolution.padding if not isinstance(convolution.padding, str) else (0, 0)
    reach = convolution.dilation[axis] * (convolution.kernel_size[axis] - 1) + 1
    return (side + 2 * int(padding[axis]) - reach) // convolution.stride[axis] + 1


_NOTE = "taken_apart"
"""A plain attribute of a list of layers that has been compared with its parts, so that copies need not be."""


def take_apart(tower: OpaqueTower) -> ApartTower | str:
    """The same encoder in parts, compared with the whole; or why it cannot be taken apart.

    Notes on the list of its layers what was found.

    Returns:
        The encoder, or the reason.
    """
    siblings = next((block.siblings for block in tower.blocks if block.siblings is not None), None)
    if siblings is None:
        return "its layers stand in no list"
    known = vars(siblings).get(_NOTE)
    if known is None:
        known = _compared(tower)
        setattr(siblings, _NOTE, known)
    if isinstance(known, str):
        return known
    return ApartTower(tower, **known)


def _compared(tower: OpaqueTower) -> dict[str, Any] | str:
    try:
        with torch.inference_mode(False), torch.no_grad(), evaluation_mode(tower.root):
            return _take_apart(tower)
    except NotInPartsError as error:
        return str(error)
    except Exception as error:  # noqa: BLE001 (the model's own code, run in ways it may not expect)
        return f"its code does not run in parts: {type(error).__name__} {str(error)[:100]}"


def _take_apart(tower: OpaqueTower) -> dict[str, Any]:
    blocks = tower.blocks
    in_list = [block for block in blocks if block.siblings is not None]
    modules = [block.module for block in in_list]
    if not tower.in_order or not in_list or list(blocks[: len(in_list)]) != in_list or len(set(modules)) < len(modules):
        raise NotInPartsError("its layers do not run one after another, each once")
    counts = {len(block.prunables) for block in in_list}
    outputs = [units.output for block in in_list for units in block.prunables]
    if len(counts) > 1 or not all(isinstance(output, nn.Linear) for output in outputs):
        raise NotInPartsError("its layers differ, or end in convolutions")
    inputs = tower.examples(3)
    one = _run(tower, modules, inputs[:1])
    for before, after in pairwise(modules):
        out, x = first(one.outputs[before]), one.calls[after].x
        if out.shape != x.shape or not torch.equal(out, x):
            raise NotInPartsError("something happens between its layers")
    shapes = {module: Shape(one.outputs[module]) for module in modules}
    many = passed_on(tower, inputs, shapes)
    layers: dict[nn.Module, OwnLayer] = {}
    tried: dict[Any, tuple[tuple[str, ...], bool]] = {}
    for block in in_list:
        call, more = one.calls[block.module], many[block.module]
        if (len(call.x), len(more.x)) != (1, 3):
            raise NotInPartsError("inputs do not lie along the first dimension")
        layer = layers[block.module] = OwnLayer(block.module, block.prunables, one.calls[block.module])
        for place, (leaf, other) in enumerate(zip(call.leaves, more.leaves, strict=True)):
            if isinstance(leaf, Tensor) and isinstance(other, Tensor):
                layer.batched[place] = leaf.shape != other.shape
        kind = type(block.module), tuple(map(type, block.module.modules()))
        if kind not in tried:
            tried[kind] = _mixing(layer, [kind for kind, _ in named(block)], more)
    mixing = tuple(sorted({kind for found, _ in tried.values() for kind in found}))
    narrows = all(found for _, found in tried.values())
    last = first(one.outputs[modules[-1]])
    for silenced in (_before(tower, modules[0]), []):
        apart = ApartTower(tower, layers, mixing, silenced, narrows=narrows)
        if _reads(apart, inputs[:1], last, one.embeddings):
            apart.cuts = _can_be_cut(apart, inputs)
            return apart.found
    raise NotInPartsError("its parts do not make up the whole")


@dataclass
class _Seen:
    """What was seen of a run: calls and outputs of layers, and the embeddings."""

    calls: dict[nn.Module, Call]
    outputs: dict[nn.Module, Any]
    embeddings: Tensor


def _run(tower: OpaqueTower, modules: Sequence[nn.Module], inputs: Tensor) -> _Seen:
    calls: dict[nn.Module, Call] = {}
    outputs: dict[nn.Module, Any] = {}

    def called(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        calls[module], outputs[module] = Call(args, kwargs), output

    handles = [module.register_forward_hook(called, with_kwargs=True) for module in modules]
    try:
        return _Seen(calls, outputs, tower.encode(inputs))
    finally:
        for handle in handles:
            handle.remove()


def _before(tower: OpaqueTower, layer: nn.Module) -> list[nn.Module]:
    """Layers with much to compute that run before the first layer in parts."""
    found: list[nn.Module] = []

    def called(module: nn.Module, _args: Any, _output: Any) -> None:
        found.append(module)

    def reached(*_: Any, **__: Any) -> Any:
        raise NotInPartsError("the first layer is reached")

    inside = set(layer.modules())
    kinds = nn.Linear, nn.Embedding, nn.Conv2d
    heavy = [each for each in tower.root.modules() if isinstance(each, kinds) and each not in inside]
    handles = [module.register_forward_hook(called) for module in heavy]
    try:
        with forwards([(layer, reached)]):
            tower.run()
    except NotInPartsError:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return found


def _near(found: Tensor, expected: Tensor) -> bool:
    tolerance = 50 * torch.finfo(expected.dtype).eps * float(expected.abs().max())
    return found.shape == expected.shape and bool((found - expected).abs().max() <= tolerance)


def _mixing(layer: OwnLayer, kinds: Sequence[str], call: Call) -> tuple[tuple[str, ...], bool]:
    """Compares the parts of a layer with the whole, for inputs as they are and repeated.

    Returns:
        Types of units whose sub-layers mix tokens, and whether outputs are put together token by token.

    Raises:
        NotInPartsError: If they differ.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(call.x.shape, generator=generator).to(call.x)
    whole = layer.whole(x, call, 1)
    for times in (1, 2):
        given = x.repeat(times, *[1] * (x.ndim - 1))
        outs: tuple[Tensor, ...] = ()
        hidden: list[Tensor] = []
        for place, units in enumerate(layer.units):
            hidden.append(layer.hidden(place, given, outs, call, times))
            outs = (*outs, units.output(hidden[-1]))
        if not all(_near(found, whole) for found in layer.finish(given, outs, call, times).chunk(times)):
            raise NotInPartsError("the parts of its layers do not make up the whole")
    if x.ndim != 3:
        return tuple(kinds), False
    few = [out[:, :1] for out in outs]
    try:
        narrows = _near(layer.finish(given[:, :1], few, call, 2), layer.finish(given, outs, call, 2)[:, :1])
    except RuntimeError:
        return tuple(kinds), False
    mixes = []
    for place, kind in enumerate(kinds):
        try:
            alike = kind != "head" and _near(
                layer.hidden(place, given[:, :1], few[:place], call, 2), hidden[place][:, :1]
            )
        except RuntimeError:
            alike = False
        if not alike:
            mixes.append(kind)
    return tuple(mixes), narrows


def _reads(tower: ApartTower, inputs: Tensor, last: Tensor, expected: Tensor) -> bool:
    """Whether the embeddings are read off the last layer's output: repeated, and narrowed to the pooled token."""
    try:
        stream = tower.stem(inputs).with_x(last)
        if not all(_near(found, expected) for found in tower.readout(stream.repeat(2)).chunk(2)):
            return False
        return _near(tower.readout(stream.narrow()), expected)
    except RuntimeError:  # another way is tried
        return False


def _can_be_cut(tower: ApartTower, inputs: Tensor) -> bool:
    """Whether inputs may end with their pooled token."""
    if inputs.is_floating_point() or inputs.ndim != 2:
        return False
    pooled = tower.stem(inputs).pooled
    if pooled is None or bool((pooled == inputs.shape[1] - 1).all()):
        return False
    whole = tower.encode(inputs[:2])
    cut = (tower.encode(inputs[row : row + 1, : place + 1]) for row, place in enumerate(pooled[:2].tolist()))
    return all(_near(found, whole[row : row + 1]) for row, found in enumerate(cut))
