"""Under torchrun: the same table on every rank, whatever their number, and whoever dies on the way."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import torch_pruning_mope as mope
from torch_pruning_mope.scoring import Ranks

from . import score_in_ranks

ROOT = Path(__file__).parents[3]
SCRIPT = score_in_ranks.__name__


def launch(out: Path, world: int, interaction: str, dies: int = -1, at: int = 0) -> subprocess.CompletedProcess[str]:
    """Runs the script in so many processes, under torchrun."""
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(world), "-m"]
    command = [sys.executable, "-m", *torchrun, SCRIPT, str(out), interaction, str(dies), str(at)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)


def measured(out: Path) -> list[str]:
    """Keys in all journals."""
    lines = [line for file in out.glob("*.jsonl") for line in file.read_text().splitlines() if line.endswith("}")]
    return [found["key"] for line in lines if "key" in (found := json.loads(line)) and found["key"] != "dense"]


@pytest.mark.slow
@pytest.mark.parametrize("interaction", ["nested", "greedy"])
def test_ranks_end_with_the_table_of_one(tmp_path: Path, interaction: str) -> None:
    for world in (1, 3 if interaction == "greedy" else 2):
        out = tmp_path / str(world)
        out.mkdir()
        if world == 1:  # without torchrun: here, where all is imported
            score_in_ranks.main(out, interaction)
        else:
            done = launch(out, world, interaction)
            assert done.returncode == 0, done.stderr
        own = [mope.ScoreTable.load(out / f"own{rank}.json") for rank in range(world)]
        assert all(table == own[0] for table in own)
        assert mope.ScoreTable.load(out / "table.json") == own[0]
        assert not list(out.glob("*.jsonl"))
        assert own[0] == mope.ScoreTable.load(tmp_path / "1" / "table.json")


@pytest.mark.slow
def test_what_a_dead_rank_has_measured_is_not_measured_again(tmp_path: Path) -> None:
    out = tmp_path / "broken"
    out.mkdir()
    assert launch(out, 2, "nested", dies=1, at=7).returncode != 0
    before = measured(out)
    assert len(set(before)) == len(before) >= 4  # both ranks' own, none twice
    assert not (out / "table.json").exists()
    assert launch(out, 3, "nested", dies=0, at=5).returncode != 0
    again = measured(out)
    assert len(set(again)) == len(again) > len(before)
    score_in_ranks.main(out, "nested")
    (tmp_path / "whole").mkdir()
    score_in_ranks.main(tmp_path / "whole", "nested")
    assert mope.ScoreTable.load(out / "table.json") == mope.ScoreTable.load(tmp_path / "whole" / "table.json")


def test_ranks_that_hold_different_pairs_are_told() -> None:
    ranks = Ranks()
    ranks.world = 2
    ranks.gather = lambda mine: [mine, {**mine, "pairs": "other"}]  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"pairs must be the same on all ranks; found \['mine', 'other'\]"):
        ranks.check_same(weights="same", pairs="mine")
