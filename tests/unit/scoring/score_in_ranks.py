"""What a user's script looks like: nothing in it knows of ranks. Run by test_ranks.py, alone or under torchrun."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

import torch_pruning_mope as mope
from tests.unit.models import clip, pairs_for


class Deadly(mope.metrics.ContrastiveLoss):
    """Kills its process at the given evaluation, as a machine that fails would."""

    key = "deadly"

    def __init__(self, at: int) -> None:
        super().__init__()
        self._left = at

    def per_image(self, images: torch.Tensor, texts: torch.Tensor, image_index: torch.Tensor) -> Any:
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().per_image(images, texts, image_index)


def main(out: Path, interaction: str, rank_that_dies: int = -1, at: int = 0) -> None:
    torch.set_num_threads(1)
    rank = int(os.environ.get("RANK", "0"))
    encoder = mope.DualEncoder(clip())
    pairs = pairs_for(encoder.model, 12)
    metric = Deadly(at if rank == rank_that_dies else 0)
    table = mope.score(
        encoder,
        pairs,
        metric=metric,
        kinds=("head", "neurons", "block"),
        groups=3,
        interaction=interaction,  # type: ignore[arg-type]
        reconstruct=interaction == "nested",
        batch_size=12,
        path=out / "table.json",
        progress=False,
    )
    table.save(out / f"own{rank}.json")
    assert not torch.distributed.is_initialized()  # a script that goes on to train makes a group of its own
    again = mope.score(encoder, pairs, metric=metric, kinds=("block",), progress=False)
    assert len(again.scores) == sum(len(tower.blocks) for tower in encoder.towers.values())


if __name__ == "__main__":
    folder, kinds, *death = sys.argv[1:]
    for kind in kinds.split(","):
        main(Path(folder) / kind if "," in kinds else Path(folder), kind, *map(int, death))
