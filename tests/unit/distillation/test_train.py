"""The loop learns, resumes to the same bits, and resumes nothing else. Of several ranks, see test_ranks.py."""

import copy
import json
import resource
import threading
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch_pruning as tp

import torch_pruning_mope as mope
from tests.asserts import assert_close, unchanged
from tests.unit.models import clip, pairs_for
from torch_pruning_mope._io import SAVING
from torch_pruning_mope.distillation import DistillationLoss, TeacherCache, TrainingStep, distil, distill
from torch_pruning_mope.distillation._batches import drawn
from torch_pruning_mope.errors import FolderInUseError
from torch_pruning_mope.scoring import fingerprint

QUICK: dict[str, Any] = {"batch_size": 8, "learning_rate": 1e-3, "progress": False}


_PRUNED: dict[str, torch.nn.Module] = {}


def student_of(teacher: mope.DualEncoder) -> mope.DualEncoder:
    """A copy without some heads and neurons, and without a layer."""
    key = fingerprint(teacher.model)
    if key not in _PRUNED:
        pruned = mope.DualEncoder(copy.deepcopy(teacher.model))
        importance = mope.WeightedImportance(pruned, [(tp.importance.GroupMagnitudeImportance(), 1.0)])
        mope.prune(pruned, importance, head_ratio=0.3, ffn_ratio=0.3)
        _PRUNED[key] = pruned.model
    student = mope.DualEncoder(copy.deepcopy(_PRUNED[key]))
    student.remove_blocks("image", [1])
    return student


@pytest.fixture
def teacher() -> mope.DualEncoder:
    return mope.DualEncoder(clip())


@pytest.fixture
def train() -> mope.Pairs:
    return pairs_for(clip(), 40, captions=2)


def weights(encoder: mope.DualEncoder) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in encoder.model.parameters()])


def test_the_student_comes_nearer_to_the_teacher(teacher: mope.DualEncoder, train: mope.Pairs) -> None:
    student = student_of(teacher)
    with unchanged(teacher.model):
        history = distill(student, train, teacher=teacher, loss=DistillationLoss.paper(), steps=30, **QUICK)
    assert [entry.step for entry in history] == list(range(1, 31))
    assert history[0].terms.keys() == {"contrastive", "similarity", "features", "hidden"}
    first, last = (sum(e.terms["features"] for e in part) for part in (history[:5], history[-5:]))
    assert last < 0.8 * first
    assert not student.model.training
    rates = [entry.learning_rate for entry in history]
    assert max(rates) == rates[2] == pytest.approx(1e-3)  # warm-up: a tenth
    assert all(a < b for a, b in pairwise(rates[:3]))
    assert all(a > b for a, b in pairwise(rates[3:]))


def test_the_default_objective_and_the_other_spelling(teacher: mope.DualEncoder, train: mope.Pairs) -> None:
    assert distil is distill is mope.distill
    assert DistillationLoss.paper().weights == {"contrastive": 1, "similarity": 1, "features": 1000, "hidden": 1}
    assert DistillationLoss().weights == {"contrastive": 1, "similarity": 1, "features": 5000}
    student = student_of(teacher)
    assert distill(student, train, teacher=teacher, steps=1, **QUICK)[0].terms.keys() == {
        "contrastive",
        "similarity",
        "features",
    }
    alone = distill(student, train, steps=1, **QUICK)[0]
    assert alone.terms == {"contrastive": pytest.approx(alone.loss)}


def test_chunks_change_nothing(teacher: mope.DualEncoder, train: mope.Pairs) -> None:
    found = []
    for parts in (1, 3):
        student = student_of(teacher)
        history = distill(student, train, teacher=teacher, steps=3, chunks=parts, **QUICK)
        found.append((weights(student), [entry.loss for entry in history]))
    # Adam divides gradients by their size, so rounding shows where there is nearly none; gradients are compared elsewhere.
    assert_close(found[1][0], found[0][0], 1e-3)
    assert found[1][1] == pytest.approx(found[0][1], rel=1e-5)


def test_batches_are_those_of_their_epoch_which_is_drawn_once(
    train: mope.Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawings, original = list[int](), torch.randperm

    def counted(*args: Any, **kwargs: Any) -> torch.Tensor:
        drawings.append(args[0])
        return original(*args, **kwargs)

    monkeypatch.setattr(torch, "randperm", counted)
    batches = drawn(train, None, 0, 8, 3, 0, 1)
    found = [next(batches) for _ in range(10)]  # two epochs of five
    assert drawings == [40, 80] * 2
    for epoch in (found[:5], found[5:]):
        assert sorted(int(row) for batch in epoch for row in batch.rows) == list(range(40))
        for batch in epoch:
            assert torch.equal(train.image_index[batch.captions], batch.rows)
    assert not torch.equal(found[0].rows, found[5].rows)
    for begun in (4, 5, 7):
        assert torch.equal(next(drawn(train, None, begun, 8, 3, 0, 1)).captions, found[begun].captions)


class Killed(Exception):
    pass


def _dies_at(step: int) -> Any:
    def on_step(entry: TrainingStep) -> None:
        if entry.step == step:
            raise Killed

    return on_step


@pytest.mark.parametrize("as_batches", [False, True])
def test_an_interrupted_run_goes_on_to_the_same_bits(
    teacher: mope.DualEncoder, train: mope.Pairs, tmp_path: Path, as_batches: bool
) -> None:
    batches = [(train.images[i : i + 8], train.tokens[i : i + 8]) for i in range(0, 40, 8)]
    data: Any = batches if as_batches else train
    arguments: dict[str, Any] = {"teacher": teacher, "steps": 8, "save_every": 3, **QUICK}
    whole = student_of(teacher)
    expected = distill(whole, data, path=tmp_path / "whole", **arguments)
    for attempt, step in enumerate((5, 7)):
        student = student_of(teacher)
        with pytest.raises(Killed):
            distill(student, data, path=tmp_path / "parts", on_step=_dies_at(step), **arguments)
        assert steps_saved(tmp_path / "parts") == (3, 6)[attempt]
    student = student_of(teacher)
    found = distill(student, data, path=tmp_path / "parts", **arguments)
    assert torch.equal(weights(student), weights(whole))
    assert [(entry.step, entry.loss) for entry in found] == [(entry.step, entry.loss) for entry in expected]
    untouched = student_of(teacher)
    assert distill(untouched, data, path=tmp_path / "parts", **arguments) == found  # done already
    assert torch.equal(weights(untouched), weights(whole))


OTHERS: dict[str, dict[str, Any]] = {
    "steps": {"steps": 3},
    "batch_size": {"batch_size": 7},
    "chunks": {"chunks": 2},
    "learning_rate": {"learning_rate": 1e-4},
    "weight_decay": {"weight_decay": 0.1},
    "warmup": {"warmup": 0.5},
    "max_norm": {"max_norm": None},
    "ema": {"ema": 0.9},
    "precision": {"precision": "bf16"},
    "teacher_precision": {"teacher_precision": "bf16"},
    "seed": {"seed": 1},
    "loss": {"loss": DistillationLoss(features=1.0)},
    "pairs": {"pairs": pairs_for(clip(), 39, captions=2)},
    "teacher": {"teacher": mope.DualEncoder(clip(seed=1))},
}


def test_any_other_run_is_refused(teacher: mope.DualEncoder, train: mope.Pairs, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"pairs": train, "teacher": teacher, "steps": 2, "path": tmp_path, **QUICK}
    distill(student_of(teacher), **arguments)
    for name, changed in OTHERS.items():
        other = student_of(teacher)
        with unchanged(other.model), pytest.raises(ValueError, match=rf"the one at .* has other {name}\. Choose"):
            distill(other, **arguments | changed)
    for name, change in {
        "student": lambda model: model.visual.proj.data.mul_(1.001),  # the same shapes, other weights
        "frozen": lambda model: model.visual.proj.requires_grad_(False),
        "student ": lambda model: setattr(model.visual.transformer.resblocks[0].mlp, "gelu", torch.nn.ReLU()),
    }.items():
        other = student_of(teacher)
        change(other.model)
        with pytest.raises(ValueError, match=rf"has other {name.strip()}\. Choose"):
            distill(other, **arguments)
    with pytest.raises(ValueError, match="has other teacher"):
        distill(student_of(teacher), **arguments | {"teacher": TeacherCache.of(teacher, train)})
    (tmp_path / "training.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is damaged"):
        distill(student_of(teacher), **arguments)


def test_two_trainings_in_one_folder(teacher: mope.DualEncoder, train: mope.Pairs, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"steps": 2, "path": tmp_path, **QUICK}
    seen = []

    def refused() -> None:
        other = student_of(teacher)
        with unchanged(other.model), pytest.raises(FolderInUseError, match="is held by another thread") as error:
            distill(other, train, **arguments)
        seen.append(error)

    def second(_: TrainingStep) -> None:
        thread = threading.Thread(target=refused)
        thread.start()
        thread.join()

    whole = student_of(teacher)
    distill(whole, train, on_step=second, **arguments)
    assert len(seen) == 2
    again = student_of(teacher)
    distill(again, train, **arguments)  # the folder is free again, and holds the first
    assert torch.equal(weights(again), weights(whole))


def steps_saved(folder: Path) -> int:
    return len(json.loads((folder / "training.json").read_text())["history"])


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def test_a_full_disk_leaves_the_checkpoint_before(teacher: mope.DualEncoder, train: mope.Pairs, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"steps": 6, "save_every": 2, "path": tmp_path, **QUICK}
    with pytest.raises(Killed):
        distill(student_of(teacher), train, on_step=_dies_at(4), **arguments)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        with pytest.raises(OSError, match="cannot be written"):
            distill(student_of(teacher), train, **arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert files(tmp_path) == ["training.json", "training.safetensors"]
    assert steps_saved(tmp_path) == 2
    assert len(distill(student_of(teacher), train, **arguments)) == 6


def test_a_checkpoint_that_a_kill_left_halfway_to_its_place_counts(
    teacher: mope.DualEncoder, train: mope.Pairs, tmp_path: Path
) -> None:
    arguments: dict[str, Any] = {"steps": 4, "save_every": 2, "path": tmp_path, **QUICK}
    with pytest.raises(Killed):
        distill(student_of(teacher), train, on_step=_dies_at(3), **arguments)
    (tmp_path / SAVING).mkdir()
    for name in files(tmp_path)[1:]:
        (tmp_path / name).rename(tmp_path / SAVING / name)
        (tmp_path / name).write_text("of the save before")
    seen: list[int] = []
    distill(student_of(teacher), train, on_step=lambda entry: seen.append(entry.step), **arguments)
    assert seen == [3, 4]
    assert files(tmp_path) == ["training.json", "training.safetensors"]


def test_a_loss_that_is_no_number_stops(teacher: mope.DualEncoder, train: mope.Pairs, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"steps": 6, "save_every": 2, "path": tmp_path, **QUICK}
    with pytest.raises(Killed):
        distill(student_of(teacher), train, on_step=_dies_at(3), **arguments)
    student = student_of(teacher)

    def breaks(entry: TrainingStep) -> None:
        if entry.step == 3:
            with torch.no_grad():
                student.model.visual.proj[0, 0] = torch.nan

    # No checkpoint of this process yet: the message names the one that it resumed from.
    with pytest.raises(
        mope.errors.NonFiniteError, match=r"found nan at step 4\. The last checkpoint is that of step 2 in"
    ):
        distill(student, train, on_step=breaks, **arguments)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"steps": 0}, "steps and chunks must be at least 1"),
        ({"steps": 1, "batch_size": 50}, "batch_size must be at least 2 and at most the 40 training images"),
        ({"steps": 1, "chunks": 2, "loss": DistillationLoss.paper()}, "chunks must be 1 for the term 'hidden'"),
        ({"steps": 1, "ema": 1.0}, "ema must be a decay between 0 and 1, or None; found 1"),
        (
            {"steps": 1, "loss": DistillationLoss.paper(), "teacher": None},
            "teacher must be a DualEncoder, or a TeacherCache with hidden=True, for the term 'hidden'",
        ),
        ({"steps": 1, "pairs": []}, "pairs must yield batches"),
    ],
)
def test_what_cannot_be_is_refused(
    teacher: mope.DualEncoder, train: mope.Pairs, arguments: dict[str, Any], match: str
) -> None:
    with unchanged(teacher.model), pytest.raises(ValueError, match=match):
        distill(teacher, **{"pairs": train, "teacher": teacher, **QUICK, **arguments})
