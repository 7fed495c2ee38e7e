"""Residual sub-layers, the form in which scoring sees every Transformer: ``x -> finish(x, output(hidden(x)))``.

``output`` is the one linear layer that mixes the units back into the residual stream: an attention's out-projection, or the
second layer of an MLP. Removing units is therefore the same for heads and for neurons: take their channels out of ``hidden``.

Axes: ``N`` sequences, ``T`` tokens, ``D`` residual width, ``U`` channels of ``hidden`` (``H * E`` or ``F``).
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..surgery import PrunableAttention
from ._prunable import Prunable


@dataclass(frozen=True)
class Stream:
    """The residual stream between two sub-layers.

    Attributes:
        x: Hidden states ``[N, T, D]``.
        mask: Additive attention mask broadcastable to ``[N, H, T, T]`` (or ``[T, T]``), or None.
        pooled: Which token of each sequence the readout uses, ``[N]``, or None if it uses several.
        outs: Outputs of the sub-layers of the layer at hand that have run, where its own code puts them together.
        context: Whatever else a tower needs to go on.
        times: How many times the inputs are repeated.
    """

    x: Float[Tensor, "N T D"]
    mask: Tensor | None = None
    pooled: Int[Tensor, "N"] | None = None
    outs: tuple[Float[Tensor, "N T D"], ...] = ()
    context: Any = None
    times: int = 1

    def with_x(self, x: Float[Tensor, "N T D"]) -> "Stream":
        """The same stream with other hidden states."""
        return replace(self, x=x)

    def narrow(self) -> "Stream":
        """Only the pooled token of each sequence, ``T = 1``; valid where no later sub-layer mixes tokens."""
        if self.pooled is None or self.x.shape[1] == 1:
            return self
        outs = tuple(self.pooled_rows(out) for out in self.outs)
        return replace(self, x=self.pooled_rows(self.x), mask=None, pooled=torch.zeros_like(self.pooled), outs=outs)

    def pooled_mask(self) -> Tensor | None:
        """The mask's rows for the pooled token as query, ``[N, 1 or H, 1, T]``."""
        if self.pooled is None:
            raise ValueError("pooled must name one token per sequence; found None.")
        if self.mask is None:
            return None
        if self.mask.ndim == 2:
            return self.mask[self.pooled][:, None, None, :]
        index = self.pooled.view(-1, 1, 1, 1).expand(-1, self.mask.shape[1], 1, self.mask.shape[-1])
        return self.mask.expand(len(self.x), -1, -1, -1).gather(2, index)

    def pooled_rows(self, x: Float[Tensor, "N T U"]) -> Float[Tensor, "N 1 U"]:
        """Takes the pooled token's row of each sequence from a tensor."""
        return x[torch.arange(len(x), device=x.device), self.pooled][:, None]

    def repeat(self, times: int) -> "Stream":
        """The stream with its sequences repeated, for ``times`` ablations that run as one batch."""
        mask = self.mask
        if mask is not None and mask.ndim == 4 and mask.shape[0] > 1:
            mask = mask.repeat(times, 1, 1, 1)
        pooled = None if self.pooled is None else self.pooled.repeat(times)
        outs = tuple(out.repeat(times, *[1] * (out.ndim - 1)) for out in self.outs)
        x = self.x.repeat(times, *[1] * (self.x.ndim - 1))
        return replace(self, x=x, mask=mask, pooled=pooled, outs=outs, times=self.times * times)


class Sublayer(Prunable):
    """One residual sub-layer; a subclass says how its hidden channels arise and how its output joins the stream."""

    mixes_tokens: bool
    """True if a token's output depends on other tokens."""

    @property
    @abstractmethod
    def output(self) -> nn.Linear:
        """The linear layer whose input channels are the units' channels."""

    @abstractmethod
    def hidden(self, stream: Stream, *, pooled_only: bool = False) -> Float[Tensor, "N T U"]:
        """The input of ``output``; with ``pooled_only`` that of the pooled token alone, ``T = 1``."""

    @abstractmethod
    def finish(self, stream: Stream, out: Float[Tensor, "N T D"]) -> Stream:
        """The stream after this sub-layer, from the stream before it and ``out = output(hidden)``."""

    def __call__(self, stream: Stream) -> Stream:
        """The stream after the whole sub-layer."""
        return self.finish(stream, self.output(self.hidden(stream)))


class AttentionSublayer(Sublayer):
    """Pre-norm self-attention: ``x + scale(out_proj(heads(norm(x))))``."""

    mixes_tokens = True

    def __init__(self, norm: nn.Module, attention: nn.Module, scale: nn.Module | None = None) -> None:
        self.norm = norm
        self.attention = cast("PrunableAttention", attention)
        self.scale = scale or nn.Identity()

    @property
    def sources(self) -> Sequence[nn.Module]:
        """The input projections, and the gate if there is one."""
        return self.attention.makers()

    @property
    def output(self) -> nn.Linear:
        """The out-projection."""
        return self.attention.out_proj

    @property
    def unit_size(self) -> int:
        """The head dimension."""
        return self.attention.head_dim

    def hidden(self, stream: Stream, *, pooled_only: bool = False) -> Float[Tensor, "N T U"]:
        """The heads side by side."""
        keys = self.norm(stream.x)
        if pooled_only:
            return self.attention.heads(stream.with_x(keys).narrow().x, keys, keys, stream.pooled_mask())
        return self.attention.heads(keys, keys, keys, stream.mask)

    def finish(self, stream: Stream, out: Float[Tensor, "N T D"]) -> Stream:
        """Adds the scaled output."""
        return stream.with_x(stream.x + self.scale(out))


class FeedForwardSublayer(Sublayer):
    """Pre-norm MLP: ``x + scale(output(hidden(norm(x))))``."""

    mixes_tokens = False

    def __init__(self, norm: nn.Module, first: nn.Module, output: nn.Linear, scale: nn.Module | None = None) -> None:
        self.norm = norm
        self.first = first
        self._output = output
        self.scale = scale or nn.Identity()

    @property
    def sources(self) -> Sequence[nn.Module]:
        """The linear layers of the first part."""
        return tuple(module for module in self.first.modules() if isinstance(module, nn.Linear))

    @property
    def output(self) -> nn.Linear:
        """The MLP's second layer."""
        return self._output

    @property
    def unit_size(self) -> int:
        """One neuron is one channel."""
        return 1

    def hidden(self, stream: Stream, *, pooled_only: bool = False) -> Float[Tensor, "N T U"]:
        """The activated neurons."""
        neurons: Tensor = self.first(self.norm((stream.narrow() if pooled_only else stream).x))
        return neurons

    def finish(self, stream: Stream, out: Float[Tensor, "N T D"]) -> Stream:
        """Adds the scaled output."""
        return stream.with_x(stream.x + self.scale(out))
