"""Folded models embed as the models that they were made from."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

import torch_pruning_mope as mope
from tests.asserts import assert_close, unchanged
from tests.unit import zoo
from torch_pruning_mope import DualEncoder, Pairs
from torch_pruning_mope.deploy import fold
from torch_pruning_mope.scoring import Unit

each_family = pytest.mark.parametrize("family", zoo.FAMILIES)


def pruned(model: Any, *, empty: bool = True) -> DualEncoder:
    """Every third head and neuron gone, and all of some sub-layers that stand in a row of layers."""
    encoder = DualEncoder(model)
    units = []
    for layer in encoder.layers:
        parts = (("head", layer.block.attention), ("neurons", layer.block.feed_forward))
        for place, (kind, part) in enumerate(parts):
            if part is None:
                continue
            size = part.unit_size
            step = max(2, min(3, part.num_units))
            gone = list(range(0, part.num_units, step))
            if empty and part.can_be_empty and layer.block.siblings is not None and (layer.index + place) % 2 == 0:
                gone = list(range(part.num_units))
            gone = gone[: part.num_units - (0 if part.can_be_empty else 1)]
            channels = tuple(unit * size + channel for unit in gone for channel in range(size))
            if channels:
                units.append(Unit(kind, layer.tower, layer.index, 0, channels))  # type: ignore[arg-type]
    mope.remove_units(encoder, units)
    return encoder


@torch.no_grad()
def embeddings(model: Any, pairs: Pairs) -> Mapping[str, Tensor]:
    """By the model's own functions."""
    from tests.unit.towers.test_families import _embeddings

    return _embeddings(model, pairs)  # type: ignore[return-value]


def deviation(found: Tensor, expected: Tensor) -> float:
    return ((found.double() - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize(
    ("family", "empty"),
    [
        *((family, True) for family in zoo.FAMILIES),
        *((family, False) for family in ("open_clip ViT", "SigLIP", "CoCa")),
    ],
)
def test_embeddings_stay(family: str, empty: bool) -> None:
    encoder = pruned(zoo.build(family), empty=empty)
    pairs = zoo.pairs_of(encoder)
    exact = Pairs(pairs.images.double(), pairs.tokens)
    with unchanged(encoder.model):
        folded = fold(encoder)
    own, found = embeddings(encoder.model, pairs), embeddings(folded, pairs)
    expected = embeddings(encoder.model.double(), exact)
    found_exact = embeddings(fold(encoder.model), exact)
    for tower in expected:
        assert_close(found_exact[tower], expected[tower], 1e-13)
        # Some of these models magnify rounding, their own as well.
        assert deviation(found[tower], expected[tower]) <= max(3e-6, 3 * deviation(own[tower], expected[tower]))
