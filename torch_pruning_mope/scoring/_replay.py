"""A walk through a tower that runs by the model's own code, resumed at one of its layers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from .._state import evaluation_mode
from ..encoder import EncoderCore, TowerName
from ..towers import OpaqueTower
from ..towers._resume import resume, shape_alone
from ._units import Ablation
from ._walk import Point, Walk


@dataclass(frozen=True)
class Replay:
    """The state of a tower between layers: its inputs, and outputs of the layers before.

    Where each layer takes what the one before it puts out and nothing else does, all but the last in shape alone.
    """

    inputs: Tensor
    before: tuple[Any, ...] = ()


class LayerWalk(Walk):
    """A tower that runs by the model's own code: a step is a layer, or the whole tower where layers run several times."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._in_order = not isinstance(self.view, OpaqueTower) or self.view.in_order
        self.depths = len(_modules(self.encoder, self.tower)) if self._in_order else 0
        self._in_chain = not isinstance(self.view, OpaqueTower) or self.view.in_chain

    def step_of(self, layer: int, part: str) -> int:
        if isinstance(self.view, OpaqueTower):
            return self.view.begins(self.blocks[layer], part) if self._in_order else 0
        return _modules(self.encoder, self.tower).index(self.blocks[layer].module)

    def resumes(self, ablation: Ablation) -> int:
        return self.step_of(ablation.layer, ablation.part)

    def stem(self, inputs: Tensor) -> Replay:
        return Replay(inputs)

    def tokens(self, state: Replay) -> int:
        """Places of the first layer's output: tokens, or those of a map."""
        if not self.depths:
            return 1
        first = tree_leaves(self.step(0, state).before[-1])[0]
        return int(first.shape[1] if first.ndim == 3 else first.shape[2:].numel())

    def kept(self, state: Replay) -> Sequence[Tensor]:
        held = state.before[-1:] if self._in_chain else state.before
        return [leaf for leaf in tree_leaves(held) if isinstance(leaf, Tensor)]

    def step(self, depth: int, state: Replay) -> Any:
        if depth == self.depths:
            return self._play(state)
        before = map(shape_alone, state.before) if self._in_chain else state.before
        return Replay(state.inputs, (*before, self._play(state, stop=depth)))

    def run(self, depth: int, state: Replay) -> Float[Tensor, "N J"]:  # noqa: ARG002 (the state knows)
        embeddings: Tensor = self._play(state)
        return embeddings

    def ablated(self, depth: int, ablations: Sequence[Ablation]) -> Callable[[Point], Float[Tensor, "K n J"]]:  # noqa: ARG002
        return lambda point: torch.stack([self._play(point.base, ablation) for ablation in ablations])

    def _play(self, state: Replay, *more: Ablation, stop: int | None = None) -> Any:
        """Runs the tower from a state on; to the end, or to the output of a layer."""
        inference = torch.is_inference_mode_enabled()
        # Physical removal makes parameters, which inference tensors cannot be in training later on.
        with (
            torch.inference_mode(False),
            self._without(*more) as encoder,
            torch.inference_mode(inference),
            torch.no_grad(),  # which leaving inference mode turns off
            evaluation_mode(encoder.model),
        ):
            encode = partial(encoder.embed, self.tower)
            return resume(encode, state.inputs, _modules(encoder, self.tower), state.before, stop)


def _modules(encoder: EncoderCore, tower: TowerName) -> list[nn.Module]:
    """The layers, each once."""
    return list(dict.fromkeys(block.module for block in encoder.towers[tower].blocks))
