"""Reconstruction of one small random model of every family, in double precision."""

import copy
from typing import Any

import pytest
import torch

import torch_pruning_mope as mope
from torch_pruning_mope import DualEncoder, Pairs

from ..zoo import FAMILIES, build, pairs_of


def cut(encoder: DualEncoder, share: float = 0.5) -> None:
    """Removes the first units of every layer."""
    units = []
    for layer in encoder.layers:
        for kind, part in (("head", layer.block.attention), ("neurons", layer.block.feed_forward)):
            count = 0 if part is None else int(part.num_units * share)
            if count:
                channels = tuple(range(count * part.unit_size))
                units.append(mope.Unit(kind, layer.tower, layer.index, 0, channels))
    mope.remove_units(encoder, units)


def double(name: str) -> tuple[DualEncoder, DualEncoder, Pairs]:
    dense = DualEncoder(build(name).double())
    pairs = pairs_of(dense, 24)
    return DualEncoder(copy.deepcopy(dense.model)), dense, Pairs(pairs.images.double(), pairs.tokens)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family(name: str) -> None:
    student, dense, pairs = double(name)
    cut(student)
    state = copy.deepcopy(dense.model.state_dict())
    before: dict[str, Any] = {tower: _error(student, dense, pairs, tower) for tower in ("image", "text")}
    report = mope.reconstruct(student, dense, pairs, ridge=1e-2, progress=False)
    for tower in ("image", "text"):
        assert _error(student, dense, pairs, tower) < before[tower]
    assert all(layer.after <= layer.before for layer in report.layers)
    print(report)
    for key, value in dense.model.state_dict().items():
        assert torch.equal(value, state[key])


@torch.no_grad()
def _error(student: DualEncoder, dense: DualEncoder, pairs: Pairs, tower: Any) -> float:
    inputs = pairs.images if tower == "image" else pairs.tokens
    whole = dense.embed(tower, inputs)
    return float((student.embed(tower, inputs) - whole).norm() / whole.norm())
