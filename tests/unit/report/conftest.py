"""A small run folder that holds everything."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from torch_pruning_mope import DualEncoder, make_plan, score
from torch_pruning_mope.distillation import TrainingStep
from torch_pruning_mope.report import changed_examples
from torch_pruning_mope.runs import RunFolder, TrainingLog

from ..models import clip, pairs_for

RECALLS = {"i2t_r1": 61.25, "i2t_r5": 83.3, "i2t_r10": 91.7, "t2i_r1": 58.5, "t2i_r5": 80.0, "t2i_r10": 90.0}


def row(criterion: str, stage: str, parameters: int = 50_000, **rest: Any) -> dict[str, Any]:
    """A row of evaluation.json."""
    sizes = {"parameters": parameters, "multiply_adds": 40 * parameters, "latency_ms": parameters / 4000}
    return {"model": "small clip", "criterion": criterion, "stage": stage, **sizes, **RECALLS, "pairs": 12, **rest}


ROWS = [
    row("random", "pruned", 31_000, i2t_r1=8.25, t2i_r1=9.5),
    row("MoPE", "distilled", 30_000, i2t_r1=60.0, t2i_r1=57.5),
    row("Taylor", "pruned", 32_000, i2t_r1=33.0, t2i_r1=37.5),
    row("MoPE", "pruned", 30_000, i2t_r1=50.0, t2i_r1=47.5),
    row("none", "dense"),
]
STEPS = [TrainingStep(n, 2.0 / n, {"contrast": 1.0 / n, "similarity": 0.25}, 1e-4 / n) for n in range(1, 46)]


@pytest.fixture(scope="session")
def full_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scores, plan, evaluation, log, examples and configuration; not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    folder.mkdir()
    encoder = DualEncoder(clip())
    pairs = pairs_for(encoder.model, 12, captions=2)
    table = score(
        encoder, pairs, metric="contrastive_loss", kinds=("head", "neurons", "block"), groups=4, progress=False
    )
    table.save(folder / "scores.json")
    plan = make_plan(encoder, table, parameters="55%")
    plan.save(folder / "plan.json")
    smaller = DualEncoder(copy.deepcopy(encoder.model))
    plan.apply(smaller)
    changed_examples(encoder, smaller, pairs, count=6).save(folder / "examples.json")
    (folder / "evaluation.json").write_text(json.dumps({"rows": ROWS}))
    TrainingLog(RunFolder(folder)).finish(STEPS)
    (folder / "config.yaml").write_text("metric: contrastive_loss\ntitle: <b>&\n")
    return folder


@pytest.fixture
def run(full_run: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(full_run, tmp_path / "run"))
