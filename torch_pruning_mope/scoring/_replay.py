"""A walk through a tower that is run by the model's own code, resumed at one of its layers.

The layers before are not run: the last of them gives out what was recorded, the others anything of the right shape. What
stands between the layers, such as the stem or a change of resolution, is run again.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from .._state import evaluation_mode
from ..encoder import EncoderCore, TowerName
from ..towers import OpaqueTower
from ._ablate import Ablator
from ._units import Ablation
from ._walk import Point, Refit, Walk


@dataclass(frozen=True)
class Replay:
    """The state of a tower between two layers.

    Attributes:
        inputs: What the tower began with.
        before: What the layers before would put out, all but the last of them in shape alone.
    """

    inputs: Tensor
    before: tuple[Any, ...] = ()


class _Reached(Exception):  # noqa: N818 (no error, the way out)
    """A layer has been run; nothing after it matters."""


class ReplayWalk(Walk):
    """A tower whose steps are its layers, run by the model's own code.

    Args:
        encoder: The dual encoder.
        tower: Which of its towers.
        removed: What contributes nothing from the start.
        ablator: What takes units away.
    """

    per_block = 1

    def __init__(self, encoder: EncoderCore, tower: TowerName, removed: Collection[Ablation], ablator: Ablator) -> None:
        self._tower: TowerName = tower
        self._encoder = encoder
        self._removed = tuple(removed)
        self._ablator = ablator
        view = encoder.towers[tower]
        modules = _modules(encoder, tower)
        # Where layers run several times, or in no order that could be resumed, the whole tower is one step.
        self._in_order = not isinstance(view, OpaqueTower) or view.in_order
        self._steps = {block: modules.index(each.module) for block, each in enumerate(view.blocks)}
        self.depths = len(modules) if self._in_order else 0

    def depth(self, ablation: Ablation) -> int:
        """The layer that an ablation is in."""
        return self._steps[ablation.layer] if self._in_order else 0

    def lengths(self, inputs: Tensor) -> Tensor | None:  # noqa: ARG002
        """Inputs are run as they are."""
        return None

    def stem(self, inputs: Tensor) -> Replay:
        """Nothing is run yet."""
        return Replay(inputs)

    def tokens(self, stream: Replay) -> int:
        """Places of the first layer's output: tokens, or those of a map."""
        if not self.depths:
            return 1
        first = tree_leaves(self.step(0, stream).before[-1])[0]
        return int(first.shape[1] if first.ndim == 3 else first.shape[2:].numel())

    def kept(self, stream: Replay) -> Sequence[Tensor]:
        """What the last layer put out."""
        return [leaf for leaf in tree_leaves(stream.before[-1:]) if isinstance(leaf, Tensor)]

    def point(self, depth: int, stream: Replay) -> Point:  # noqa: ARG002
        """Layers are not entered, so the point is the stream."""
        nothing = stream.inputs.new_empty(0)
        return Point(stream, nothing, nothing)

    def finish(self, depth: int, point: Point) -> Replay:
        """As :meth:`step`."""
        return self.step(depth, point.base)

    def step(self, depth: int, stream: Replay) -> Replay:
        """The stream after a layer."""
        before = tuple(tree_map(_shape_alone, out) for out in stream.before)
        return Replay(stream.inputs, (*before, self._play(stream, stop=depth)))

    def run(self, depth: int, stream: Replay) -> Float[Tensor, "N J"]:  # noqa: ARG002 (the stream knows)
        """From the stream to the embeddings."""
        embeddings: Tensor = self._play(stream)
        return embeddings

    def run_without(
        self,
        depth: int,  # noqa: ARG002
        point: Point,
        ablations: Sequence[Ablation],
        refitted: Sequence[Refit | None],  # noqa: ARG002
    ) -> Float[Tensor, "K n J"]:
        """One after another."""
        return torch.stack([self._play(point.base, ablation) for ablation in ablations])

    def run_past(self, depth: int, stream: Replay, ablation: Ablation) -> Float[Tensor, "n J"]:  # noqa: ARG002
        """The layer is run and what it puts out replaced."""
        embeddings: Tensor = self._play(stream, ablation)
        return embeddings

    def _play(self, stream: Replay, *more: Ablation, stop: int | None = None) -> Any:
        """Runs the tower from where the stream is; to the end, or to what a layer puts out."""
        with ExitStack() as stack:
            # Physical removal makes parameters, which inference tensors cannot be in training later on.
            stack.enter_context(torch.inference_mode(False))
            encoder = stack.enter_context(self._ablator.without(self._tower, [*self._removed, *more]))
            stack.enter_context(torch.inference_mode())
            stack.enter_context(evaluation_mode(encoder.model))
            modules = _modules(encoder, self._tower)
            for module, out in zip(modules, stream.before, strict=False):
                stack.enter_context(_puts_out(module, out))
            if stop is not None:
                stack.enter_context(_stops_after(modules[stop]))
            try:
                return encoder.embed(self._tower, stream.inputs)
            except _Reached as reached:
                return reached.args[0]


def _modules(encoder: EncoderCore, tower: TowerName) -> list[nn.Module]:
    """The layers, each once."""
    return list(dict.fromkeys(block.module for block in encoder.towers[tower].blocks))


@contextmanager
def _forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """A module with another forward, and its own again afterwards."""
    own = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own


def _puts_out(module: nn.Module, out: Any) -> Any:
    return _forward(module, lambda *_, **__: out)


@contextmanager
def _stops_after(module: nn.Module) -> Iterator[None]:
    """A module after which the run ends."""

    def reached(_module: nn.Module, _args: Any, output: Any) -> None:
        raise _Reached(output)

    handle = module.register_forward_hook(reached)
    try:
        yield
    finally:
        handle.remove()


def _shape_alone(value: Any) -> Any:
    """A tensor of the same shape that takes no memory."""
    return value.new_zeros(()).expand(value.shape) if isinstance(value, Tensor) else value
