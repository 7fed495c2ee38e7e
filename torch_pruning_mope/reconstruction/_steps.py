"""A tower as steps between which its state can be kept, in its own parts or by the model's own code.

The last step is the readout, from the last state to the embeddings.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..encoder import EncoderCore, TowerName
from ..scoring._replay import Replay
from ..towers import Block, OpaqueTower, Prunable, Stream, Sublayer, Tower, first_tensor
from ..towers._resume import resume, shape_alone


class Steps(ABC):
    """One tower of one model."""

    readout: int
    """Position of the last step."""

    def __init__(self, encoder: EncoderCore, tower: TowerName) -> None:
        self.encoder = encoder
        self.tower: TowerName = tower
        self.view = encoder.towers[tower]
        self.blocks: Sequence[Block] = list(self.view.blocks)

    @abstractmethod
    def step_of(self, block: int, units: Prunable) -> int:
        """The step in which the units of a block run."""

    @abstractmethod
    def start(self, inputs: Tensor) -> Any:
        """The state before the first step."""

    @abstractmethod
    def run(self, step: int, state: Any) -> Any:
        """The state after a step; the embeddings after the last."""

    def rows_that_reach(self, step: int, inputs: Tensor, rows: Tensor) -> Tensor | None:  # noqa: ARG002
        """Of ``rows`` that a layer of a step puts out ``[N, T, D]``, those that can reach the embedding; None for all."""
        return None


class StreamSteps(Steps):
    """A tower that is taken apart: a step is a sub-layer, of the pooled token alone where no later one mixes tokens."""

    view: Tower

    def __init__(self, encoder: EncoderCore, tower: TowerName) -> None:
        super().__init__(encoder, tower)
        self._steps: list[Sublayer] = [part for block in self.blocks if block.is_in_parts for part in block.sublayers]
        self.readout = len(self._steps)
        self._last_mixing = max((d for d, part in enumerate(self._steps) if part.mixes_tokens), default=-1)

    def step_of(self, block: int, units: Prunable) -> int:
        """The sub-layer's; the readout for an attention pool."""
        if not self.blocks[block].is_in_parts:
            return self.readout
        before = sum(len(own.sublayers) for own in self.blocks[:block] if own.is_in_parts)
        return before + next(place for place, part in enumerate(self.blocks[block].sublayers) if part is units)

    def start(self, inputs: Tensor) -> Stream:
        """The stem."""
        return self.view.stem(inputs.to(self.encoder.device))

    def run(self, step: int, state: Stream) -> Any:
        """A sub-layer, or the readout."""
        if step == self.readout:
            return self.view.readout(state)
        part = self._steps[step]
        pooled_only = state.pooled is not None and step >= self._last_mixing
        out = part.output(part.hidden(state, pooled_only=pooled_only))
        base = state.narrow() if pooled_only else state
        return part.finish(base, out)


class HookSteps(Steps):
    """A tower that runs by the model's own code: a step is a layer, or the whole tower where layers run several times."""

    def __init__(self, encoder: EncoderCore, tower: TowerName) -> None:
        super().__init__(encoder, tower)
        in_order = not isinstance(self.view, OpaqueTower) or self.view.in_order
        self._modules = list(dict.fromkeys(block.module for block in self.blocks)) if in_order else []
        self.readout = len(self._modules)

    def step_of(self, block: int, units: Prunable) -> int:  # noqa: ARG002
        """The layer's."""
        return self._modules.index(self.blocks[block].module) if self._modules else 0

    def start(self, inputs: Tensor) -> Replay:
        """Nothing has run."""
        return Replay(inputs)

    def run(self, step: int, state: Replay) -> Any:
        """A layer, or what comes after the last."""

        def encode(inputs: Tensor) -> Tensor:
            return self.encoder.embed(self.tower, inputs)

        if step == self.readout:
            return resume(encode, state.inputs, self._modules, state.before)
        before = tuple(shape_alone(out) for out in state.before)
        return Replay(state.inputs, (*before, resume(encode, state.inputs, self._modules, state.before, step)))


def steps_of(encoder: EncoderCore, tower: TowerName) -> Steps:
    """The steps of a tower."""
    view = encoder.towers[tower]
    return (StreamSteps if isinstance(view, Tower) and view.keeps_stream else HookSteps)(encoder, tower)


def stream_of(state: Any) -> Tensor:
    """The hidden states of a state, or the embeddings."""
    if isinstance(state, Stream):
        return state.x
    return first_tensor(state.before[-1] if isinstance(state, Replay) else state)


def kept_tensors(state: Any) -> list[Tensor]:
    """The tensors that keeping a state holds, but for inputs."""
    leaves = tree_leaves(
        [state.x, state.mask] if isinstance(state, Stream) else list(getattr(state, "before", ()))[-1:]
    )
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


@dataclass
class Seen:
    """Inputs and outputs of some modules, call by call."""

    inputs: dict[nn.Module, list[Tensor]] = field(default_factory=dict)
    outputs: dict[nn.Module, list[Tensor]] = field(default_factory=dict)


@contextmanager
def watched(modules: Sequence[nn.Module], change: dict[nn.Module, Tensor] | None = None) -> Iterator[Seen]:
    """Watches modules, and adds something to what some of them put out."""
    seen = Seen()
    copied = {module for module in modules if isinstance(module, nn.Linear | nn.Conv2d)}

    def entered(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if tensors:
            kept = tensors[0].clone() if getattr(module, "inplace", False) else tensors[0]
            seen.inputs.setdefault(module, []).append(kept)

    def left(module: nn.Module, _args: Any, output: Any) -> Any:
        if isinstance(output, Tensor):
            # The residual may be added to it in place.
            seen.outputs.setdefault(module, []).append(output.clone() if module in copied else output)
        return output + change[module] if change and module in change else None

    handles: list[Any] = []
    for module in dict.fromkeys(modules):
        handles.append(module.register_forward_pre_hook(entered, with_kwargs=True))
        handles.append(module.register_forward_hook(left))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
