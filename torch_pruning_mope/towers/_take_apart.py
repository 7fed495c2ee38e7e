"""Taking an encoder apart, and comparing its parts with the whole before they are trusted."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from .._state import evaluation_mode, forwards, hooked
from ._apart import ApartTower, Found, kinds_of, passed_on
from ._look import first_tensor
from ._opaque import OpaqueTower
from ._own_layer import Call, NotInPartsError, OwnLayer, Shape, repeated
from ._resume import Reached
from ._sublayers import Stream

_NOTE = "taken_apart"
"""A plain attribute of a list of layers that has been compared with its parts, so that copies need not be."""


def take_apart(tower: OpaqueTower) -> ApartTower | str:
    """The same encoder in parts, compared with the whole; or why it cannot be taken apart."""
    siblings = next((block.siblings for block in tower.blocks if block.siblings is not None), None)
    if siblings is None:
        return "its layers stand in no list"
    found = vars(siblings).get(_NOTE)
    if found is None:
        try:
            with torch.inference_mode(False), torch.no_grad(), evaluation_mode(tower.root):
                found = _found(tower)
        except NotInPartsError as error:
            found = str(error)
        except Exception as error:  # noqa: BLE001 (the model's own code, run in ways it may not expect)
            found = f"its code does not run in parts: {type(error).__name__} {str(error)[:100]}"
        setattr(siblings, _NOTE, found)
    return found if isinstance(found, str) else ApartTower(tower, found)


def _found(tower: OpaqueTower) -> Found:
    blocks = tower.blocks
    in_list = [block for block in blocks if block.siblings is not None]
    modules = [block.module for block in in_list]
    if not tower.in_order or list(blocks[: len(in_list)]) != in_list or len(set(modules)) < len(modules):
        raise NotInPartsError("its layers do not run one after another, each once")
    others = [(block, part) for block in blocks[len(in_list) :] for part in kinds_of(block)]
    if any(tower.begins(block, part) < len(in_list) for block, part in others):
        raise NotInPartsError("other units run before the end of its layers")
    outputs = [units.output for block in in_list for units in block.prunables]
    if len({len(block.prunables) for block in in_list}) > 1 or not all(isinstance(o, nn.Linear) for o in outputs):
        raise NotInPartsError("its layers differ, or end in convolutions")
    inputs = tower.examples(3)
    calls, returned, embeddings = _run(tower, modules, inputs)
    for before, after in pairwise(modules):
        out, x = first_tensor(returned[before]), calls[after].x
        if out.shape != x.shape or not torch.equal(out, x):
            raise NotInPartsError("something happens between its layers")
    alone = passed_on(tower, inputs[:1], {module: Shape(returned[module]) for module in modules})
    layers: dict[nn.Module, OwnLayer] = {}
    tried: dict[Any, tuple[frozenset[str], bool]] = {}
    for block in in_list:
        call, one = calls[block.module], alone[block.module]
        if (len(one.x), len(call.x)) != (1, 3):
            raise NotInPartsError("inputs do not lie along the first dimension")
        batched = {
            place: leaf.shape != other.shape
            for place, (leaf, other) in enumerate(zip(call.leaves, one.leaves, strict=True))
            if isinstance(leaf, Tensor) and isinstance(other, Tensor)
        }
        layer = layers[block.module] = OwnLayer(block.module, block.prunables, call, batched)
        kind = tuple(map(type, block.module.modules()))
        if kind not in tried:
            tried[kind] = _mixing(layer, kinds_of(block), call)
    mixing = frozenset[str]().union(*(kinds for kinds, _ in tried.values()))
    found = Found(layers, mixing, all(narrows for _, narrows in tried.values()))
    for silent in (_before(tower, modules[0]), ()):
        apart = ApartTower(tower, replace(found, silent=silent))
        if _makes_up(apart, inputs, embeddings):
            return replace(found, silent=silent, cuts=_can_be_cut(apart, inputs, embeddings))
    raise NotInPartsError("its parts do not make up the whole")


def _run(
    tower: OpaqueTower, modules: Sequence[nn.Module], inputs: Tensor
) -> tuple[dict[nn.Module, Call], dict[nn.Module, Any], Tensor]:
    """Calls and outputs of layers, and the embeddings."""
    calls: dict[nn.Module, Call] = {}
    outputs: dict[nn.Module, Any] = {}

    def called(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        calls[module], outputs[module] = Call(args, kwargs), output

    with hooked(modules, called):
        return calls, outputs, tower.encode(inputs)


def _before(tower: OpaqueTower, layer: nn.Module) -> tuple[nn.Module, ...]:
    """Convolutions and linear layers of images that run before the first layer in parts."""
    if not tower.examples(1).is_floating_point():  # captions are looked up, which costs nothing
        return ()
    found: list[nn.Module] = []

    def reached(*_: Any, **__: Any) -> Any:
        raise Reached

    inside = set(layer.modules())
    heavy = [m for m in tower.root.modules() if isinstance(m, nn.Linear | nn.Conv2d) and m not in inside]
    with hooked(heavy, lambda module, *_: found.append(module)), forwards([(layer, reached)]):
        try:
            tower.run()
        except Reached:
            return tuple(found)
    raise NotInPartsError("its first layer does not run")


def _near(found: Tensor, expected: Tensor) -> bool:
    tolerance = 50 * torch.finfo(expected.dtype).eps * float(expected.abs().max())
    return found.shape == expected.shape and bool((found - expected).abs().max() <= tolerance)


def _mixing(layer: OwnLayer, kinds: Sequence[str], call: Call) -> tuple[frozenset[str], bool]:
    """Types of units whose sub-layers mix tokens, and whether outputs are put together token by token."""
    x = torch.randn(call.x.shape, generator=torch.Generator().manual_seed(0)).to(call.x)
    whole = layer.finish(x, (), call, 1)
    for times in (1, 2):
        given, outs, hidden = repeated(x, times), list[Tensor](), list[Tensor]()
        # What modules note of one run must not be read in another, so others come between.
        other = partial(layer.finish, given.flip(0), (), call, times)
        for place, units in enumerate(layer.units):
            other()
            hidden.append(layer.hidden(place, given, outs, call, times))
            outs.append(units.output(hidden[-1]))
        other()
        out = layer.finish(given, outs, call, times)
        if not all(_near(part, whole) for part in out.chunk(times)):
            raise NotInPartsError("the parts of its layers do not make up the whole")
    if x.ndim != 3:
        return frozenset(kinds), False
    few = [out[:, :1] for out in outs]

    def alike(expected: Tensor, function: Any, *arguments: Any) -> bool:
        try:
            return _near(function(*arguments, call, 2), expected[:, :1])
        except RuntimeError:  # its code wants all tokens
            return False

    mixes = {
        kind
        for place, kind in enumerate(kinds)
        if kind == "head" or not alike(hidden[place], partial(layer.hidden, place), given[:, :1], few[:place])
    }
    return frozenset(mixes), alike(out, layer.finish, given[:, :1], few)


def _makes_up(tower: ApartTower, inputs: Tensor, expected: Tensor) -> bool:
    """Checks that the encoder in parts computes the embeddings: repeated, and narrowed to the pooled token at the end."""
    try:
        stream: Stream = tower.stem(inputs).repeat(2)
        for block in tower.blocks:
            for sublayer in block.sublayers if block.is_in_parts else ():
                stream = sublayer(stream)
        whole, narrowed = tower.readout(stream), tower.readout(stream.narrow())
    except RuntimeError:  # another way is tried
        return False
    return all(_near(part, expected) for found in (whole, narrowed) for part in found.chunk(2))


def _can_be_cut(tower: ApartTower, inputs: Tensor, expected: Tensor) -> bool:
    """Returns whether inputs may end with their pooled token."""
    pooled = None if inputs.is_floating_point() or inputs.ndim != 2 else tower.stem(inputs).pooled
    if pooled is None or bool((pooled == inputs.shape[1] - 1).all()):
        return False
    cut = (tower.encode(inputs[row : row + 1, : place + 1]) for row, place in enumerate(pooled.tolist()))
    return all(_near(found, expected[row : row + 1]) for row, found in enumerate(cut))
