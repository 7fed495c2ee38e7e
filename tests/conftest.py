"""Fixtures shared by all tests, and one thread, so that a float is the same float on every machine.

Property tests try the same cases on every run. ``HYPOTHESIS_PROFILE=explore`` tries new ones; add what it finds as @example.
"""

import os

import pytest
import torch
from hypothesis import settings

from torch_pruning_mope import DualEncoder, Pairs

from .unit.models import clip, pairs_for

torch.set_num_threads(1)
settings.register_profile("gate", derandomize=True, deadline=None, database=None)
settings.register_profile("explore", deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "gate"))


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
