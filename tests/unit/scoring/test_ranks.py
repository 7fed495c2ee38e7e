"""Under torchrun: the same table on every rank, whatever their number, and whoever dies on the way."""

import json
import os
import signal
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

import torch_pruning_mope as mope
from tests.unit.models import clip, pairs_for
from tests.unit.ranks import run_ranks
from torch_pruning_mope.scoring import _ranks


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


def main(rank: int, out: Path, interaction: str, rank_that_dies: int = -1, at: int = 0) -> None:
    """A user's script: nothing in it but the name of a file depends on the rank."""
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


def measured(out: Path) -> list[str]:
    """Keys in all journals."""
    lines = [line for file in out.glob("*.jsonl") for line in file.read_text().splitlines() if line.endswith("}")]
    found = [json.loads(line.partition(" ")[2]) for line in lines]
    return [line["key"] for line in found if "key" in line and line["key"] != "dense"]


@pytest.mark.parametrize("interaction", ["nested", "greedy"])
def test_ranks_end_with_the_table_of_one(interaction: str, tmp_path: Path) -> None:
    one, two = tmp_path / "1", tmp_path / "2"
    one.mkdir()
    two.mkdir()
    main(0, one, interaction)
    assert run_ranks(main, two, interaction) == [0, 0]
    for folder, world in ((one, 1), (two, 2)):
        for rank in range(world):
            assert mope.ScoreTable.load(folder / f"own{rank}.json") == mope.ScoreTable.load(one / "table.json")
        assert mope.ScoreTable.load(folder / "table.json") == mope.ScoreTable.load(one / "table.json")
        assert not list(folder.glob("*.jsonl"))


def test_what_a_dead_rank_has_measured_is_not_measured_again(tmp_path: Path) -> None:
    out = tmp_path / "broken"
    out.mkdir()
    assert run_ranks(main, out, "nested", 1, 7)[1] == -signal.SIGKILL
    before = measured(out)
    assert len(set(before)) == len(before) >= 4  # both ranks' own, none twice
    assert not (out / "table.json").exists()
    assert run_ranks(main, out, "nested", 0, 5)[0] == -signal.SIGKILL
    again = measured(out)
    assert len(set(again)) == len(again) > len(before)
    main(0, out, "nested")
    (tmp_path / "whole").mkdir()
    main(0, tmp_path / "whole", "nested")
    assert mope.ScoreTable.load(out / "table.json") == mope.ScoreTable.load(tmp_path / "whole" / "table.json")


def _call(rank: int, folder: Path) -> None:
    """One of two processes of a user's own group, which make different calls; the last time one makes none."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    encoder = mope.DualEncoder(clip())
    for case, options in (("groups", {"groups": 2 + rank}), ("pairs", {}), ("none", {})):
        pairs = pairs_for(encoder.model, 4 + rank * (case == "pairs"))
        if (case, rank) == ("none", 1):
            return
        if case == "none":
            _ranks._PATIENCE, _ranks._BEAT = timedelta(seconds=1), 0.1
        try:
            mope.score(encoder, pairs, kinds=("head",), towers=("text",), progress=False, **options)
        except (ValueError, TimeoutError) as error:
            Path(folder, f"{case}{rank}").write_text(str(error))


def test_ranks_that_make_different_calls_are_told(tmp_path: Path) -> None:
    assert run_ranks(_call, tmp_path) == [0, 0]
    for rank in (0, 1):
        assert "groups must be the same on all ranks; found ['2', '3']" in Path(tmp_path, f"groups{rank}").read_text()
        assert "pairs must be the same on all ranks; found" in Path(tmp_path, f"pairs{rank}").read_text()
    found = Path(tmp_path, "none0").read_text()
    assert "all 2 ranks must make the same calls; found 1 waiting" in found
