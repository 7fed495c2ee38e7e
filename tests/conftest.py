"""Fixtures shared by all tests, and one thread, so that a float is the same float on every machine."""

import pytest
import torch

from torch_pruning_mope import DualEncoder, Pairs

from .unit.models import clip, pairs_for

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def encoder() -> DualEncoder:
    """A small random CLIP, wrapped, in eval mode."""
    return DualEncoder(clip())


@pytest.fixture
def pairs(encoder: DualEncoder) -> Pairs:
    """A dozen pairs that fit it."""
    return pairs_for(encoder.model, 12)
