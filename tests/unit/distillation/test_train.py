"""The loop: it learns, and goes on to the same bits. Of several ranks, see test_shards.py."""

import copy
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

import torch_pruning_mope as mope
from tests.asserts import assert_close, unchanged
from tests.unit.models import clip, pairs_for
from torch_pruning_mope.distillation import DistillationLoss, TeacherEmbeddings, TrainingStep, distil
from torch_pruning_mope.distillation._checkpoint import latest_training

QUICK: dict[str, Any] = {"batch_size": 8, "learning_rate": 1e-3, "progress": False}


def student_of(teacher: mope.DualEncoder) -> mope.DualEncoder:
    """A copy without some heads and neurons, and without a layer."""
    student = mope.DualEncoder(copy.deepcopy(teacher.model))
    importance = mope.WeightedImportance(student, [(_magnitude(), 1.0)])
    mope.prune(student, importance, head_ratio=0.3, ffn_ratio=0.3)
    student.remove_blocks("image", [1])
    return student


def _magnitude() -> Any:
    import torch_pruning as tp

    return tp.importance.GroupMagnitudeImportance()


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
        history = distil(student, train, teacher=teacher, steps=60, **QUICK)
    assert [entry.step for entry in history] == list(range(1, 61))
    assert history[0].terms.keys() == {"contrastive", "similarity", "features", "hidden"}
    first, last = (sum(e.terms["features"] for e in part) for part in (history[:10], history[-10:]))
    assert last < 0.7 * first
    assert not student.model.training


def test_without_a_teacher_it_is_the_contrastive_loss(teacher: mope.DualEncoder, train: mope.Pairs) -> None:
    history = distil(student_of(teacher), train, steps=2, **QUICK)
    assert history[0].terms == {"contrastive": pytest.approx(history[0].loss)}


def test_rates_rise_and_fall(teacher: mope.DualEncoder, train: mope.Pairs) -> None:
    rates = [entry.learning_rate for entry in distil(student_of(teacher), train, steps=20, warmup=0.25, **QUICK)]
    assert rates[4] == pytest.approx(1e-3)
    assert all(a < b for a, b in pairwise(rates[:5]))
    assert all(a > b for a, b in pairwise(rates[5:]))


@pytest.mark.parametrize("chunks", [2, 3])
def test_chunks_change_nothing(teacher: mope.DualEncoder, train: mope.Pairs, chunks: int) -> None:
    found = []
    for parts in (1, chunks):
        student = student_of(teacher)
        history = distil(
            student, train, teacher=teacher, loss=DistillationLoss(hidden=0.0), steps=3, chunks=parts, **QUICK
        )
        found.append((weights(student), [entry.loss for entry in history]))
    # Adam divides gradients by their size, so rounding shows where there is nearly none; gradients are compared elsewhere.
    assert_close(found[1][0], found[0][0], 1e-3)
    assert found[1][1] == pytest.approx(found[0][1], rel=1e-5)


def test_stored_embeddings_teach_as_the_teacher_does(
    teacher: mope.DualEncoder, train: mope.Pairs, tmp_path: Path
) -> None:
    file, found = tmp_path / "teacher.safetensors", []
    stored = TeacherEmbeddings.of(teacher, train, path=file)
    again = TeacherEmbeddings.of(teacher, train, path=file)
    assert torch.equal(stored.images, again.images)
    assert torch.equal(stored.texts, again.texts)
    for source in (teacher, stored, again):
        student = student_of(teacher)
        history = distil(student, train, teacher=source, loss=DistillationLoss(hidden=0.0), steps=4, **QUICK)
        found.append([entry.loss for entry in history])
    assert found[1] == pytest.approx(found[0], rel=1e-5)
    assert found[2] == found[1]
    with pytest.raises(mope.WrongModelError, match="for other pairs"):
        TeacherEmbeddings.of(teacher, pairs_for(teacher.model, 5), path=file)
    with pytest.raises(mope.WrongModelError, match="for other weights"):
        TeacherEmbeddings.of(mope.DualEncoder(clip(seed=1)), train, path=file)


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
    expected = distil(whole, data, path=tmp_path / "whole", **arguments)
    for attempt, step in enumerate((5, 7)):
        student = student_of(teacher)
        with pytest.raises(Killed):
            distil(student, data, path=tmp_path / "parts", on_step=_dies_at(step), **arguments)
        saved = latest_training(tmp_path / "parts")
        assert saved is not None
        assert saved.name == ("step-00000003", "step-00000006")[attempt]
    student = student_of(teacher)
    found = distil(student, data, path=tmp_path / "parts", **arguments)
    assert torch.equal(weights(student), weights(whole))
    assert [(entry.step, entry.loss) for entry in found] == [(entry.step, entry.loss) for entry in expected]
    untouched = student_of(teacher)
    assert distil(untouched, data, path=tmp_path / "parts", **arguments) == found  # done already
    assert torch.equal(weights(untouched), weights(whole))


def test_another_run_is_refused(teacher: mope.DualEncoder, train: mope.Pairs, tmp_path: Path) -> None:
    distil(student_of(teacher), train, steps=2, path=tmp_path, **QUICK)
    with pytest.raises(ValueError, match=r"the one at .* has other learning_rate, steps"):
        distil(student_of(teacher), train, steps=3, path=tmp_path, **QUICK | {"learning_rate": 1e-4})
    saved = latest_training(tmp_path)
    assert saved is not None
    (saved / "training.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is damaged"):
        distil(student_of(teacher), train, steps=2, path=tmp_path, **QUICK)


def test_a_full_disk_leaves_the_checkpoint_before(
    teacher: mope.DualEncoder, train: mope.Pairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = student_of(teacher)
    with pytest.raises(Killed):
        distil(student, train, steps=6, save_every=2, path=tmp_path, on_step=_dies_at(4), **QUICK)

    def full(tensors: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("torch_pruning_mope.distillation._checkpoint.save_file", full)
        with pytest.raises(OSError, match="No space left"):
            distil(student_of(teacher), train, steps=6, save_every=2, path=tmp_path, **QUICK)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]
    assert len(distil(student_of(teacher), train, steps=6, save_every=2, path=tmp_path, **QUICK)) == 6


def test_a_loss_that_is_no_number_stops(teacher: mope.DualEncoder, train: mope.Pairs, tmp_path: Path) -> None:
    student = student_of(teacher)

    def break_at(entry: TrainingStep) -> None:
        if entry.step == 3:
            with torch.no_grad():
                student.model.visual.proj[0, 0] = torch.nan

    with pytest.raises(mope.NonFiniteError, match=r"found nan at step 4\. The last checkpoint is .*step-00000002"):
        distil(student, train, steps=6, save_every=2, path=tmp_path, on_step=break_at, **QUICK)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"steps": 0}, "steps and chunks must be at least 1"),
        ({"steps": 1, "batch_size": 50}, "batch_size must be at least 2 and at most the 40 training images"),
        ({"steps": 1, "chunks": 2}, "chunks must be 1 for the term 'hidden'"),
        (
            {"steps": 1, "loss": DistillationLoss(), "teacher": None},
            "teacher must be a DualEncoder, or a TeacherCache with hidden=True, for the term 'hidden'",
        ),
    ],
)
def test_what_cannot_be_is_refused(
    teacher: mope.DualEncoder, train: mope.Pairs, arguments: dict[str, Any], match: str
) -> None:
    student = student_of(teacher)
    with unchanged(student.model), pytest.raises(ValueError, match=match):
        distil(student, train, **{"teacher": teacher, **QUICK, **arguments})


def test_no_batches_are_refused(teacher: mope.DualEncoder) -> None:
    with pytest.raises(ValueError, match="pairs must yield batches"):
        distil(student_of(teacher), [], steps=1, progress=False)
