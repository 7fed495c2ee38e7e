"""Processes that die at random instants of a run."""

import multiprocessing
import random
import signal
from pathlib import Path
from typing import Any

import torch

import torch_pruning_mope as mope
from tests.unit.models import clip, pairs_for


class Noted(mope.metrics.ContrastiveLoss):
    """Leaves a byte in a file for every evaluation that begins to be measured; dies soon after one of them."""

    key = "noted"

    def __init__(self, notes: Path, at: int, after: float) -> None:
        super().__init__()
        self.notes = notes
        self._left, self._after = at, after

    def per_image(self, images: torch.Tensor, texts: torch.Tensor, image_index: torch.Tensor) -> Any:
        with self.notes.open("ab") as file:
            file.write(b".")
        self._left -= 1
        if self._left == 0:  # the alarm ends the process at any instant, as SIGKILL would
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, self._after)
        return super().per_image(images, texts, image_index)


def run(path: Path | None, notes: Path, at: int = 0, after: float = 0.0) -> mope.ScoreTable:
    encoder = mope.DualEncoder(clip())
    options: dict[str, Any] = {"interaction": "greedy", "groups": 8, "batch_size": 8, "progress": False, "path": path}
    return mope.score(encoder, pairs_for(encoder.model, 8), metric=Noted(notes, at, after), **options)


def test_ten_kills_cost_an_evaluation_each(tmp_path: Path) -> None:
    whole = run(None, tmp_path / "needed")
    needed = (tmp_path / "needed").stat().st_size
    path, notes = tmp_path / "table.json", tmp_path / "notes"
    context = multiprocessing.get_context("fork")
    rng = random.Random(0)
    for _ in range(10):
        # Every start also measures the whole model, twice: for its memory, and for its value if that is not written yet.
        child = context.Process(target=run, args=(path, notes, 2 + rng.randint(0, 3), rng.uniform(1e-6, 1e-3)))
        child.start()
        child.join()
        assert child.exitcode == -signal.SIGALRM
        assert not path.exists()
    table = run(path, notes)
    assert table == whole
    assert notes.stat().st_size <= needed + 10 + 2 * 11
