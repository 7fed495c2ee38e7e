"""``kill -9`` at random points of a run."""

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import torch_pruning_mope as mope


class Noted(mope.metrics.ContrastiveLoss):
    """Leaves a byte in a file for every evaluation that begins to be measured."""

    key = "noted"

    def __init__(self, notes: Path) -> None:
        super().__init__()
        self.notes = notes

    def per_image(self, images: torch.Tensor, texts: torch.Tensor, image_index: torch.Tensor) -> Any:
        with self.notes.open("ab") as file:
            file.write(b".")
        return super().per_image(images, texts, image_index)


def run(path: Path | None, notes: Path) -> mope.ScoreTable:
    torch.set_num_threads(1)
    encoder = mope.DualEncoder(mope.load_tiny_clip())
    pairs = mope.emoji_pairs("calibration", 16)
    options: dict[str, Any] = {"interaction": "greedy", "groups": 8, "progress": False, "path": path}
    return mope.score(encoder, pairs, metric=Noted(notes), **options)


@pytest.mark.slow
def test_twenty_kills_cost_an_evaluation_each(tmp_path: Path) -> None:
    whole = run(None, tmp_path / "needed")
    needed = (tmp_path / "needed").stat().st_size
    path, notes = tmp_path / "table.json", tmp_path / "notes"
    notes.touch()
    # A fresh interpreter each time would spend its time on imports, and a fork of this one would take its threads' state along.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    rng = random.Random(0)
    kills = 0
    while kills < 20:
        child = context.Process(target=run, args=(path, notes))
        child.start()
        begun, more = notes.stat().st_size, rng.randint(1, max(2, needed // 20))
        while child.is_alive() and notes.stat().st_size < begun + more:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.05))
        assert child.is_alive() or path.exists()
        if path.exists():
            break
        os.kill(child.pid or 0, signal.SIGKILL)
        child.join()
        kills += 1
    table = run(path, notes)
    assert table == whole
    assert kills == 20
    # Every start also measures the whole model, twice: for its memory, and for its value if that is not written yet.
    starts = kills + 1
    assert notes.stat().st_size <= needed + kills + 2 * starts
