"""A small model by name, and a run of it."""

import shutil
from pathlib import Path

import pytest

from .commands import SCORE, mope_command
from .interruptions import small_model


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny CLIP with two layers in each tower, in a folder."""
    return small_model(tmp_path_factory.mktemp("models") / "small")


@pytest.fixture(scope="session")
def _begun(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "a"
    mope_command("score", run, "--model", small, *SCORE)
    mope_command("plan", run, "--parameters", "image=60%,text=70%", "--round-to", 8)
    mope_command("prune", run, "--no-reconstruct")
    return run


@pytest.fixture
def begun(_begun: Path, tmp_path: Path) -> Path:
    """A run up to the pruned model; a copy, to do anything with."""
    return Path(shutil.copytree(_begun, tmp_path / "a"))
