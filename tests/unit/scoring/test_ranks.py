"""Under torchrun: the same table on every rank, whatever their number, and whoever dies on the way."""

import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch

import torch_pruning_mope as mope
from tests.unit.models import clip, pairs_for
from torch_pruning_mope.scoring import _ranks

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
    found = [json.loads(line.partition(" ")[2]) for line in lines]
    return [line["key"] for line in found if "key" in line and line["key"] != "dense"]


@pytest.mark.slow
def test_ranks_end_with_the_table_of_one(tmp_path: Path) -> None:
    for world in (1, 2):
        folders = [tmp_path / str(world) / name for name in ("nested", "greedy")]
        for folder in folders:
            folder.mkdir(parents=True)
        if world == 1:  # without torchrun: here, where all is imported
            for folder in folders:
                score_in_ranks.main(folder, folder.name)
        else:
            done = launch(tmp_path / "2", world, "nested,greedy")
            assert done.returncode == 0, done.stderr
        for folder in folders:
            own = [mope.ScoreTable.load(folder / f"own{rank}.json") for rank in range(world)]
            assert all(table == own[0] for table in own)
            assert mope.ScoreTable.load(folder / "table.json") == own[0]
            assert not list(folder.glob("*.jsonl"))
            assert own[0] == mope.ScoreTable.load(tmp_path / "1" / folder.name / "table.json")


@pytest.mark.slow
def test_what_a_dead_rank_has_measured_is_not_measured_again(tmp_path: Path) -> None:
    out = tmp_path / "broken"
    out.mkdir()
    assert launch(out, 2, "nested", dies=1, at=7).returncode != 0
    before = measured(out)
    assert len(set(before)) == len(before) >= 4  # both ranks' own, none twice
    assert not (out / "table.json").exists()
    assert launch(out, 2, "nested", dies=0, at=5).returncode != 0
    again = measured(out)
    assert len(set(again)) == len(again) > len(before)
    score_in_ranks.main(out, "nested")
    (tmp_path / "whole").mkdir()
    score_in_ranks.main(tmp_path / "whole", "nested")
    assert mope.ScoreTable.load(out / "table.json") == mope.ScoreTable.load(tmp_path / "whole" / "table.json")


def _call(rank: int, folder: str) -> None:
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
    torch.multiprocessing.spawn(_call, (str(tmp_path),), 2)  # type: ignore[no-untyped-call]
    for rank in (0, 1):
        assert "groups must be the same on all ranks; found ['2', '3']" in Path(tmp_path, f"groups{rank}").read_text()
        assert "pairs must be the same on all ranks; found" in Path(tmp_path, f"pairs{rank}").read_text()
    found = Path(tmp_path, "none0").read_text()
    assert "all 2 ranks must make the same calls; found 1 waiting" in found
