"""Fixtures shared by all tests, and one thread, so that a float is the same float on every machine.

Property tests try the same cases on every run. ``HYPOTHESIS_PROFILE=explore`` tries new ones; add what it finds as @example.
The package is imported by the fixtures alone: the process that hands tests out to others needs none of it.
"""

import os
import re
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from . import checked  # before the package is imported

if TYPE_CHECKING:
    from torch_pruning_mope import DualEncoder, Pairs

os.environ["OMP_NUM_THREADS"] = "1"
settings.register_profile("gate", derandomize=True, deadline=None, database=None)
settings.register_profile("explore", deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "gate"))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    import torch

    torch.manual_seed(0)
    checked.new_test()


@pytest.fixture
def encoder() -> "DualEncoder":
    """A small random CLIP, wrapped, in eval mode."""
    from torch_pruning_mope import DualEncoder

    from .unit.models import clip

    return DualEncoder(clip())


@pytest.fixture
def pairs(encoder: "DualEncoder") -> "Pairs":
    """A dozen pairs that fit it."""
    from .unit.models import pairs_for

    return pairs_for(encoder.model, 12)


@pytest.fixture
def _shallow(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny CLIP has two layers in each tower."""
    make_shallow(monkeypatch)


def make_shallow(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch_pruning_mope.checkpoint import _open_clip
    from torch_pruning_mope.data import _tiny_clip

    config, weights = _tiny_clip.tiny_clip_config(), _tiny_clip.load
    shallow = {name: config[name] | {"layers": 2} for name in ("vision_cfg", "text_cfg")}
    for home in (_tiny_clip, _open_clip):
        monkeypatch.setattr(home, "tiny_clip_config", lambda: config | shallow)
    deep = re.compile(r"resblocks\.[2-9]")
    monkeypatch.setattr(_tiny_clip, "load", lambda data: {k: v for k, v in weights(data).items() if not deep.search(k)})
