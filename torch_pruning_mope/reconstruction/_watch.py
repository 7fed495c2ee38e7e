"""Towers in steps, and what their modules take in and put out on the way."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from .._state import hooked
from ..encoder import EncoderCore, TowerName
from ..scoring._replay import LayerWalk, Replay
from ..scoring._walk import StreamWalk, Walk
from ..towers import Stream, Tower, first_tensor


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
