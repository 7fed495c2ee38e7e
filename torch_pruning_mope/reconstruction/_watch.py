"""Towers in steps, what their modules take in and put out, and where the residual stream after a layer can be seen."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from .._state import hooked
from ..encoder import EncoderCore, TowerName
from ..scoring._replay import LayerWalk, Replay
from ..scoring._walk import StreamWalk, Walk
from ..towers import Stream, Tower, first_tensor, rows


def walk_of(encoder: EncoderCore, tower: TowerName) -> Walk:
    """A tower in steps between which the residual stream is seen."""
    view = encoder.towers[tower]
    return (StreamWalk if isinstance(view, Tower) and view.keeps_stream else LayerWalk)(encoder, tower)


def stream_of(state: Any) -> Tensor:
    """The hidden states of a state, or the embeddings."""
    if isinstance(state, Stream):
        return state.x
    return first_tensor(state.before[-1] if isinstance(state, Replay) else state)


@dataclass
class Seen:
    """Inputs and outputs of some modules, call by call."""

    inputs: dict[nn.Module, list[Tensor]] = field(default_factory=dict)
    outputs: dict[nn.Module, list[Tensor]] = field(default_factory=dict)


@contextmanager
def watched(modules: Sequence[nn.Module], change: dict[nn.Module, Tensor] | None = None) -> Iterator[Seen]:
    """Watches modules, and adds something to what some of them put out."""
    seen = Seen()

    def entered(module: nn.Module, args: Any, kwargs: Any) -> None:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if tensors:
            kept = tensors[0].clone() if getattr(module, "inplace", False) else tensors[0]
            seen.inputs.setdefault(module, []).append(kept)

    def left(module: nn.Module, _args: Any, _kwargs: Any, output: Any) -> Any:
        if isinstance(output, Tensor):  # the residual may be added to it in place
            kept = output.clone() if isinstance(module, nn.Linear | nn.Conv2d) else output
            seen.outputs.setdefault(module, []).append(kept)
        return output + change[module] if change and module in change else None

    once = dict.fromkeys(modules)
    with hooked(once, entered, before=True), hooked(once, left):
        yield seen


_TOLERANCE = 1e-3
_AMPLITUDE = 1e4
"""Changes are this much larger than what is there, so that rounding is small under small layer scales."""


@dataclass(frozen=True)
class Site:
    """A place in a block where the stream is seen."""

    module: str | None  # its name in the block; None for what leaves the step
    side: str  # "input" or "output"
    turned: bool  # channels come second where those of the layer come last
    scale: Float[Tensor, " D"]  # what the layer's output channels are multiplied with before they join the stream

    def value(self, seen: Seen, owner: nn.Module, after: Any, shape: torch.Size) -> Tensor:
        """The stream, channels last or as the layer has them."""
        if self.module is None:
            found = stream_of(after)
        else:
            calls = seen.inputs if self.side == "input" else seen.outputs
            found = calls[owner.get_submodule(self.module)][0]
        if self.turned:
            return turned(found, shape)
        # A pooled token may have lost its axis.
        return (
            found.reshape(shape)
            if found.ndim < 4 and found.numel() == shape.numel() and found.shape[-1] == shape[-1]
            else found
        )


def turned(value: Tensor, shape: torch.Size) -> Tensor:
    """Maps ``[N, D, H, W]`` as ``[N, H, W, D]``."""
    return value.permute(0, 2, 3, 1) if value.ndim == 4 and len(shape) == 4 else value


def find_site(walk: Walk, step: int, state: Any, layer: nn.Module, owner: nn.Module) -> Site | None:
    """The site of a layer, or None where its output joins no stream that can be seen."""
    leaves = {name: module for name, module in owner.named_modules() if not any(module.children())}
    modules = [layer, *leaves.values()]
    with watched(modules) as base:
        before = walk.step(step, state)
    if len(base.outputs.get(layer, ())) != 1:
        return None
    out = base.outputs[layer][0]
    size = max(_rms(out), 1e-3 * _rms(stream_of(before)), torch.finfo(out.dtype).tiny ** 0.5)
    generator = torch.Generator().manual_seed(0)
    change = (_AMPLITUDE * size * torch.randn(out.shape, generator=generator, dtype=torch.float64)).to(out)
    with watched(modules, {layer: change}) as moved:
        after = walk.step(step, state)
    places: list[tuple[str | None, str]] = [(name, side) for name in leaves for side in ("input", "output")]
    for name, side in [*places, (None, "output")]:
        if name is not None and (leaves[name] is layer or len(base.outputs.get(leaves[name], ())) != 1):
            continue
        for turn in (False, True):
            site = Site(name, side, turn, out.new_zeros(1))
            pair = [site.value(seen, owner, end, out.shape) for seen, end in ((base, before), (moved, after))]
            scale = _scale(layer, out, change, *pair)
            if scale is not None:
                return Site(name, side, turn, scale)
    return None


def _scale(layer: nn.Module, out: Tensor, change: Tensor, before: Tensor, after: Tensor) -> Tensor | None:
    """By channel, how a place answers to a change, if it holds more than the output and answers in proportion."""
    if before.shape != out.shape or after.shape != out.shape:
        return None
    given, base, own = (rows(layer, value).double() for value in (change, before, out))
    answer = rows(layer, after).double() - base
    scale = (answer * given).sum(0) / given.square().sum(0)
    size = answer.norm()
    if not torch.isfinite(size) or not size or (answer - scale * given).norm() > _TOLERANCE * size:
        return None
    rest = base - scale * own
    holds_more = (rest - rest.mean(0)).norm() > 1e-4 * (base - base.mean(0)).norm()
    return scale if holds_more else None


def _rms(value: Tensor) -> float:
    return float(value.double().square().mean().sqrt()) if value.numel() else 0.0
