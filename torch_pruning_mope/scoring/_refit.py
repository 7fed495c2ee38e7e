"""Output layers refitted after units have gone: the Optimal Brain Surgeon update of their weights.

With ``h`` the input of an attention's out-projection or of an MLP's second layer in the model that is scored, ``W`` its weights
with the bias in the last row, ``A = [h 1]ᵀ[h 1] + λI`` and ``P`` the rows of what has gone, the layer becomes the minimum of
``‖[h 1]W' − [h 1]W‖² + λ‖W' − W‖²`` with zero in the rows ``P``:

    W' = W − A⁻¹[:, P]·(A⁻¹[P, P])⁻¹·W[P],   λ = 1e-4 · mean diag(hᵀh)

(Hassibi and Stork, 1993; for whole channels as in OSSCAR, arXiv 2403.12983). Sums go over the tokens that can reach the
embedding. On a path ``A`` stays that of the model that is scored, whatever has gone from other layers: a layer's refit depends
on what has gone from it alone. Where removal is no masking (inner norms), the layer's input in the model without the units
takes the place of ``h`` on the left. A block that goes leaves no layer to refit.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from .._ridge import (
    Gram,
    Refitted,
    inverse_positive,
    removal_cost,
    ridge_system,
    solve_positive,
    stacked,
)
from .._state import evaluation_mode, hooked
from ..encoder import EncoderCore, TowerName
from ..towers import Part, Reaching, patches, reaching_rows

RIDGE = 1e-4
Place = tuple[TowerName, int, Part]
Gone = tuple[int, ...]
"""Channels of a layer's input that have gone, in the order in which they went."""
_STEPS = 16
"""Channels that go together are taken a sixteenth of the layer at a time, which is cheaper than at once."""


class Refits:
    """Refitted output layers of one model on one calibration set."""

    def __init__(
        self,
        encoder: EncoderCore,
        inputs: Mapping[TowerName, Tensor],
        places: Sequence[Place],
        *,
        batch_size: int | None = None,
        memory: int | None = None,
        whole: bool = False,
    ) -> None:
        self._encoder, self._inputs = encoder, inputs
        self._batch_size = batch_size or (32 if encoder.device.type == "cpu" else 512)
        layers = {place: units.output for place, units in encoder.sublayers.items() if place in set(places)}
        # Each channel of a grouped convolution reaches some outputs only: it goes without a refit.
        self._layers = {place: layer for place, layer in layers.items() if getattr(layer, "groups", 1) == 1}
        self._sizes = {place: 8 * (_inputs(layer) + 1) ** 2 for place, layer in self._layers.items()}
        largest = max(self._sizes.values(), default=0)
        self._work = 4 * largest
        self.nbytes = self._work + sum(self._sizes.values())
        if memory is not None:
            least = self.nbytes if whole else self._work + largest
            if memory < least:
                raise ValueError(f"memory must leave {least} bytes for reconstruction; found {memory}. Give more.")
            self.nbytes = min(self.nbytes, memory)
        self._systems: dict[Place, Tensor] = {}
        self._held: dict[Place, tuple[tuple[Gone, ...], Refitted]] = {}
        self._further: tuple[Place, tuple[Gone, ...], Gone, Refitted] | None = None
        self._solved: dict[Place, dict[object, Tensor]] = {}

    def __contains__(self, place: object) -> bool:
        return place in self._layers

    def weights(self, place: Place, held: Sequence[Gone], more: Gone = ()) -> Float[Tensor, "V D"]:
        """Weights without the groups of channels that are held removed, and more; to the same bits whatever came before."""
        with _exact(self._encoder):
            held, layer, done = tuple(held), self._layers[place], 0
            state = self._base(place, held)
            if self._further is not None and self._further[:2] == (place, held):
                _, _, before, further = self._further
                if more[: len(before)] == before and len(before) < len(more):
                    state, done = further, len(before)
            step = -(-layer.weight.shape[1] // _STEPS)
            while len(more) - done > step:
                state = state.without(self._rows(place, more[done : done + step]))
                done += step
                self._further = (place, held, more[:done], state)
            return state.weights_without(self._rows(place, more[done:]), len(stacked(layer)))

    def solved(self, place: Place, gone: Sequence[int]) -> Float[Tensor, "V D"]:
        """The same from scratch: least squares of what is left onto the layer's own output."""
        key = frozenset(gone)
        with _exact(self._encoder):
            if key not in self._solved.get(place, {}):
                system, weights = self._system(place), stacked(self._layers[place])
                weights, rows = weights.to(system), self._rows(place, tuple(sorted(key))).to(system.device)
                left = torch.ones(len(weights), dtype=torch.bool, device=system.device)
                left[rows] = False
                found = torch.zeros_like(weights)
                found[left] = weights[left] + solve_positive(
                    system[left][:, left], system[left][:, rows] @ weights[rows]
                )
                self._keep(place, key, found)
        return self._solved[place][key]

    def physically(
        self, place: Place, gone: Sequence[int], cut: EncoderCore, output: nn.Module
    ) -> Float[Tensor, "V D"]:
        """The same for ``output``, the layer of a copy of the model from which the channels have been cut."""
        key = (frozenset(gone), "physically")
        with _exact(self._encoder):
            if key not in self._solved.get(place, {}):
                layer = self._layers[place]
                weights = stacked(layer)
                left = torch.ones(len(weights), dtype=torch.bool, device=weights.device)
                left[self._rows(place, tuple(gone))] = False
                own = weights[left]
                gram = Gram(len(own) - (layer.bias is not None), weights.shape[1], weights.device)
                for part, reached in self._reached(place[0], [layer]):
                    inputs, mask = reached[layer]
                    with evaluation_mode(cut.model):
                        hidden = _seen(cut, place[0], output, part)[mask].double()
                    gram.add(hidden, _product(inputs[mask].double(), weights) - _product(hidden, own))
                self._keep(place, key, own + gram.solve(RIDGE, bias=layer.bias is not None).to(own))
        return self._solved[place][key]

    def costs(self, place: Place) -> Float[Tensor, " U"]:
        """Squared error that removing each channel alone leaves after the refit."""
        with _exact(self._encoder):
            base, layer = self._base(place, ()), self._layers[place]
            channels = range(_inputs(layer) // layer.weight[0, 0].numel())
            found = [removal_cost(base.inverse, base.weights, self._rows(place, (c,)).tolist()) for c in channels]
        return torch.tensor(found, dtype=torch.double)

    def _base(self, place: Place, held: tuple[Gone, ...]) -> Refitted:
        """A layer without the groups that are held removed."""
        known, state = self._held.get(place, ((), None))
        if state is None or held[: len(known)] != known:
            self._held.pop(place, None)
            system = self._system(place)
            inverse = inverse_positive(system)
            del self._systems[place]
            weights = stacked(self._layers[place]).to(inverse)
            known, state = (), Refitted(torch.arange(len(weights), device=weights.device), inverse, weights)
        for gone in held[len(known) :]:
            state = state.without(self._rows(place, gone))
        self._held[place] = (held, state)
        return state

    def _system(self, place: Place) -> Float[Tensor, "V V"]:
        """``A`` of a layer; sums of those that come next are taken along, as far as memory goes."""
        if place not in self._systems:
            held = {*self._systems, *self._held}
            if sum(self._sizes[other] for other in {*held, place}) > self.nbytes - self._work:
                self._systems, self._held, self._further, held = {}, {}, None, set()
            room = self.nbytes - self._work - sum(self._sizes[other] for other in held)
            chosen = []
            for other in list(self._layers)[list(self._layers).index(place) :]:
                if other[0] == place[0] and other not in held and room >= self._sizes[other]:
                    room -= self._sizes[other]
                    chosen.append(other)
            self._systems |= self._sums(place[0], chosen)
        return self._systems[place]

    def _sums(self, tower: TowerName, places: Sequence[Place]) -> dict[Place, Tensor]:
        layers = {place: self._layers[place] for place in places}
        grams = {layer: Gram(_inputs(layer), 0, layer.weight.device) for layer in layers.values()}
        for _, reached in self._reached(tower, list(grams)):
            for layer, (inputs, mask) in reached.items():
                grams[layer].add(inputs[mask], inputs.new_empty(int(mask.sum()), 0))
        systems = {place: ridge_system(grams[layer].inner, RIDGE) for place, layer in layers.items()}
        return {place: s if layers[place].bias is not None else s[:-1, :-1] for place, s in systems.items()}

    def _reached(self, tower: TowerName, layers: Sequence[Any]) -> Iterator[tuple[Tensor, dict[Any, Reaching]]]:
        """Parts of a tower's inputs, each with the rows of the layers' inputs that can reach the embedding."""
        for part in self._inputs[tower].split(self._batch_size):
            with evaluation_mode(self._encoder.model):
                reached = reaching_rows(partial(self._encoder.embed, tower), layers, part)
            yield part, reached

    def _rows(self, place: Place, channels: Gone) -> Int[Tensor, " P"]:
        """Rows of the weights that belong to channels: one each, or one per place of a convolution's kernel."""
        per = self._layers[place].weight[0, 0].numel()
        return (torch.tensor(channels, dtype=torch.long)[:, None] * per + torch.arange(per)).flatten()

    def _keep(self, place: Place, key: object, weights: Tensor) -> None:
        """Keeps the last two: of what is held removed, and of what is tried."""
        known = self._solved.setdefault(place, {})
        known[key] = weights
        while len(known) > 2:
            del known[next(iter(known))]


@contextmanager
def _exact(encoder: EncoderCore) -> Iterator[None]:
    """Ordinary tensors in their own precision, whatever scoring runs under."""
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(encoder.device.type, enabled=False):
        yield


def _inputs(layer: nn.Linear | nn.Conv2d) -> int:
    """Rows of the weights but for the bias."""
    return layer.weight[0].numel()


def _product(hidden: Tensor, weights: Tensor) -> Tensor:
    count = hidden.shape[1]
    return hidden @ weights[:count] + weights[count:].sum(0)


def _seen(encoder: EncoderCore, tower: TowerName, layer: nn.Module, inputs: Tensor) -> Float[Tensor, "R U"]:
    """The layer's inputs, all calls one after another."""
    found: list[Tensor] = []
    with hooked([layer], lambda module, args, _: found.append(patches(module, args[0])), before=True):
        encoder.embed(tower, inputs)
    return torch.cat(found)
