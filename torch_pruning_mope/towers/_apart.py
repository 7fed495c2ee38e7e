"""A tower that is run by its own code and still taken apart into sub-layers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from .._state import forwards, hooked
from ._opaque import OpaqueTower
from ._own_layer import Call, OwnLayer, Shape, repeated
from ._prunable import Prunable
from ._resume import returning
from ._sublayers import Stream, Sublayer
from ._tower import Block, Tower

_PROBED = 256
"""Inputs whose pooled token is looked for at once."""


@dataclass(frozen=True)
class Context:
    """Runs around the layers of a batch besides hidden states.

    Attributes:
        inputs: The inputs of the encoder.
        calls: Of each layer.
        silent: Shapes of what layers before the first put out that need not run again.
        tokens: Tokens of each input, before anything was narrowed.
    """

    inputs: Tensor
    calls: dict[nn.Module, Call]
    silent: dict[nn.Module, torch.Size]
    tokens: int


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
        call = stream.context.calls[self._layer.module]
        found = self._layer.hidden(self._place, stream.x, stream.outs, call, stream.times)
        return stream.pooled_rows(found) if pooled_only and found.shape[1] > 1 else found

    def finish(self, stream: Stream, out: Float[Tensor, "N T D"]) -> Stream:
        """The output is kept until the last of the layer, whose code then puts all of them together."""
        outs = (*stream.outs, out)
        if len(outs) < len(self._layer.units):
            return replace(stream, outs=outs)
        call = stream.context.calls[self._layer.module]
        return replace(stream, x=self._layer.finish(stream.x, outs, call, stream.times), outs=())


@dataclass(frozen=True)
class Found:
    """An encoder taken apart.

    Attributes:
        layers: Its layers, in parts.
        mixing: Types of units whose sub-layers mix tokens.
        narrows: Whether outputs of sub-layers are put together token by token.
        silent: Layers before the first that need not run again to read the last one's output.
        cuts: Whether inputs may end with their pooled token.
    """

    layers: dict[nn.Module, OwnLayer]
    mixing: frozenset[str]
    narrows: bool
    silent: tuple[nn.Module, ...] = ()
    cuts: bool = False


class ApartTower(OpaqueTower, Tower):
    """An encoder that is entered and left at its sub-layers, all by its own code."""

    keeps_stream = False

    def __init__(self, tower: OpaqueTower, found: Found) -> None:
        vars(self).update(vars(tower))
        self._found = found

    @property
    def blocks(self) -> Sequence[Block]:
        """The layers in parts, then what runs with the readout."""
        return [self._in_parts(block) for block in super().blocks]

    def _in_parts(self, block: Block) -> Block:
        layer = self._found.layers.get(block.module)
        if layer is None:
            return block
        parts = {
            kind: OwnSublayer(layer, place, mixes_tokens=kind in self._found.mixing)
            for place, kind in enumerate(kinds_of(block))
        }
        return Block(block.module, parts.get("head"), parts.get("neurons"), block.siblings)

    def _layers_in_parts(self) -> list[OwnLayer]:
        """The layers that are left, in the order in which they run."""
        found = self._found.layers
        return [found[module] for module in dict.fromkeys(b.module for b in super().blocks) if module in found]

    def stem(self, inputs: Tensor) -> Stream:
        """The arguments of the first layer, by a run in which the layers pass on what they get."""
        layers = self._layers_in_parts()
        silent: dict[nn.Module, torch.Size] = {}
        with hooked(self._found.silent, lambda module, _args, _kwargs, output: silent.update({module: output.shape})):
            calls = passed_on(self, inputs, {layer.module: layer.shape for layer in layers})
        x = calls[layers[0].module].x
        stream = Stream(x, None, None, (), Context(inputs, calls, silent, x.shape[1]))
        return replace(stream, pooled=self._pooled(stream)) if self._found.narrows and x.ndim == 3 else stream

    def _pooled(self, stream: Stream) -> Int[Tensor, "N"] | None:
        """The one token of each input whose last state reaches the embedding, by its gradient; None if there are several."""
        with torch.inference_mode(False), torch.enable_grad():
            generator = torch.Generator(stream.x.device).manual_seed(0)

            def noise(like: Tensor) -> Tensor:
                return torch.randn(like.shape, dtype=like.dtype, device=like.device, generator=generator)

            probe = noise(stream.x).requires_grad_()
            context = replace(stream.context, inputs=stream.context.inputs.clone())
            embeddings = self.readout(replace(stream, x=probe, context=context))
            (gradient,) = torch.autograd.grad((embeddings * noise(embeddings)).sum(), [probe])
        reached = gradient.ne(0).any(-1)
        return reached.int().argmax(1) if bool((reached.sum(1) == 1).all()) else None

    def readout(self, stream: Stream) -> Float[Tensor, "N J"]:
        """The model's own pooling and projection, by a run in which the last layer puts out the stream."""
        context: Context = stream.context
        x = stream.x
        if x.ndim == 3 and x.shape[1] == 1 < context.tokens:  # narrowed: in all places, of which one is read
            x = x.expand(-1, context.tokens, -1)
        given = [(layer.module, returning(layer.shape.around(x))) for layer in self._layers_in_parts()]
        quiet = [(module, _silent(shape)) for module, shape in context.silent.items()]
        inputs = context.inputs
        # With these, images are not read but counted.
        many = (len(inputs) * stream.times, *inputs.shape[1:])
        inputs = inputs[:1].expand(many) if quiet else repeated(inputs, stream.times)
        with forwards([*given, *quiet]):
            found: Tensor = self.encode(inputs)
        return found

    def lengths(self, inputs: Tensor) -> Int[Tensor, "N"] | None:
        """Under a causal mask nothing after the pooled token can reach it."""
        if not self._found.cuts:
            return None
        device = next(self.root.parameters()).device
        found = [self.stem(part.to(device)).pooled for part in inputs.split(_PROBED)]
        lengths = [each + 1 for each in found if each is not None]
        return torch.cat(lengths) if len(lengths) == len(found) else None


def kinds_of(block: Block) -> list[str]:
    """Types of a block's units, in the order in which they run."""
    return [kind for kind, units in (("head", block.attention), ("neurons", block.feed_forward)) if units is not None]


def passed_on(tower: OpaqueTower, inputs: Tensor, shapes: Mapping[nn.Module, Shape]) -> dict[nn.Module, Call]:
    """Records the arguments of layers in a run in which they pass on what they get."""
    calls: dict[nn.Module, Call] = {}

    def passes(module: nn.Module, shape: Shape) -> Any:
        def forward(*args: Any, **kwargs: Any) -> Any:
            call = calls[module] = Call(args, kwargs)
            return shape.around(call.x)

        return forward

    with forwards([(module, passes(module, shape)) for module, shape in shapes.items()]):
        tower.encode(inputs)
    return calls


def _silent(shape: torch.Size) -> Any:
    """Zeros of a layer's shape, which take no memory."""
    return lambda x, *_, **__: x.new_zeros(()).expand(len(x), *shape[1:])
