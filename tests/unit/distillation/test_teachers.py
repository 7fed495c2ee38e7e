"""Teachers of other sizes and precisions, caches of teachers, averaged weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

import torch_pruning_mope as mope
from tests.asserts import assert_close, unchanged
from tests.unit.models import clip, pairs_for
from torch_pruning_mope.distillation import DistillationLoss, TeacherCache, TrainingStep, distill
from torch_pruning_mope.distillation import _cache as cache_module
from torch_pruning_mope.distillation._student import Student

from .test_train import QUICK, Killed, _dies_at, student_of, weights

OTHER: dict[str, Any] = {"vision": {"image_size": 32}, "text": {"context_length": 12, "vocab_size": 60, "eos_id": 59}}


@pytest.fixture
def teacher() -> mope.DualEncoder:
    return mope.DualEncoder(clip())


@pytest.fixture
def train() -> mope.Pairs:
    return pairs_for(clip(), 20, captions=2)


def losses(student: mope.DualEncoder, pairs: Any, **arguments: Any) -> list[float]:
    return [entry.loss for entry in distill(student, pairs, **{"steps": 3, **QUICK, **arguments})]


@pytest.mark.parametrize(("hidden", "on_disk"), [(False, False), (True, False), (True, True)])
def test_a_cache_is_the_teacher(
    teacher: mope.DualEncoder, train: mope.Pairs, tmp_path: Path, hidden: bool, on_disk: bool
) -> None:
    path = tmp_path / "teacher" if on_disk else None
    with unchanged(teacher.model):
        kept = TeacherCache.of(teacher, train, path=path, hidden=hidden, shard_size=6, batch_size=4)
    if path is not None:
        assert len(list(path.iterdir())) == 4 + 7
    loss = DistillationLoss.paper() if hidden else None
    live, found = (losses(student_of(teacher), train, teacher=source, loss=loss) for source in (teacher, kept))
    assert found == pytest.approx(live, rel=1e-5)
    rows, captions = torch.tensor([13, 2, 12, 19, 2]), torch.tensor([30, 0, 39, 5, 17])
    outputs = kept.encoded(rows, captions)
    with torch.no_grad():
        expected = Student(teacher, hidden=True)(train.images[rows], train.tokens[captions])
    assert_close(outputs.images, expected.images, 1e-6)
    assert_close(outputs.texts, expected.texts, 1e-6)
    assert (outputs.hidden is not None) == hidden
    if outputs.hidden is not None and expected.hidden is not None:
        for tower, blocks in expected.hidden.items():
            assert outputs.hidden[tower].keys() == blocks.keys()
            for block, states in blocks.items():
                assert_close(outputs.hidden[tower][block], states, 1e-5)


def test_an_interrupted_cache_goes_on(
    teacher: mope.DualEncoder, train: mope.Pairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, written = cache_module.save_tensors, list[str]()

    def full_at_third(path: Path, tensors: Any, about: Any) -> None:
        written.append(path.name)
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        original(path, tensors, about)

    arguments: dict[str, Any] = {"path": tmp_path, "shard_size": 8, "hidden": True}
    monkeypatch.setattr(cache_module, "save_tensors", full_at_third)
    with pytest.raises(OSError, match="No space left"):
        TeacherCache.of(teacher, train, **arguments)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"image-0000{n}.safetensors" for n in (0, 1)]
    kept = TeacherCache.of(teacher, train, **arguments)
    assert [name.split(".")[0] for name in written[3:]] == ["image-00002", *(f"text-0000{n}" for n in range(5))]
    found = kept.encoded(torch.arange(20), torch.arange(40))
    assert found.hidden is not None
    assert found.images.dtype == torch.float32
    with torch.no_grad():
        assert_close(found.images, teacher.embed("image", train.images), 1e-6)
    TeacherCache.of(teacher, train, **arguments)
    assert len(written) == 9
    for other, name in (({"hidden": False}, "hidden"), ({"shard_size": 4}, "shard_size")):
        with pytest.raises(mope.errors.WrongModelError, match=rf"is for other {name}\. Choose another path"):
            TeacherCache.of(teacher, train, **arguments | other)
    with pytest.raises(mope.errors.WrongModelError, match="is for other weights"):
        TeacherCache.of(mope.DualEncoder(clip(seed=1)), train, **arguments)
    with pytest.raises(ValueError, match="batch_size and shard_size must be at least 1"):
        TeacherCache.of(teacher, train, path=tmp_path, shard_size=0)


def test_kept_teachers_must_fit(teacher: mope.DualEncoder, train: mope.Pairs, tmp_path: Path) -> None:
    kept = TeacherCache.of(teacher, train, path=tmp_path)
    student = student_of(teacher)
    batches = list(train.batches(8))
    for arguments, match in (
        ({"pairs": pairs_for(clip(), 12)}, "teacher must be a cache of pairs; found one of 20 images and 40 captions"),
        ({"pairs": batches}, "pairs must be Pairs, and teacher_pairs left out"),
        ({"pairs": train, "loss": DistillationLoss.paper()}, "TeacherCache with hidden=True"),
    ):
        with unchanged(student.model), pytest.raises(ValueError, match=match):
            losses(student, teacher=kept, **arguments)


def test_a_teacher_of_another_resolution_and_tokenizer(train: mope.Pairs) -> None:
    other = mope.DualEncoder(clip(seed=3, **OTHER))
    theirs = pairs_for(other.model, 20, captions=2)
    theirs = mope.Pairs(theirs.images, theirs.tokens, train.image_index)
    loss = DistillationLoss()
    live = losses(student_of(mope.DualEncoder(clip())), train, teacher=other, teacher_pairs=theirs, loss=loss)
    stored = TeacherCache.of(other, theirs)
    assert losses(student_of(mope.DualEncoder(clip())), train, teacher=stored, loss=loss) == pytest.approx(
        live, rel=1e-5
    )
    first = [part[:8] for pairs in (train, theirs) for part in (pairs.images, pairs.tokens)]
    alone = losses(student_of(mope.DualEncoder(clip())), [tuple(first)], teacher=other, loss=loss, steps=1)
    both = [
        Student(encoder)(*first[2 * k : 2 * k + 2])
        for k, encoder in enumerate((student_of(mope.DualEncoder(clip())), other))
    ]
    assert alone == [pytest.approx(float(loss(*both)[0]), rel=1e-5)]
    with pytest.raises(ValueError, match="teacher_pairs must be the same images and captions in the same order"):
        losses(other, train, teacher=other, teacher_pairs=pairs_for(other.model, 21), loss=loss)
    with pytest.raises(ValueError, match="teacher_pairs must go with Pairs; found batches"):
        losses(other, list(train.batches(4)), teacher=other, teacher_pairs=theirs, loss=loss)
    with pytest.raises(ValueError, match=r"pairs must yield batches .* found one of 3"):
        losses(other, [(*next(iter(train.batches(4))), torch.zeros(4))], teacher=other, loss=loss)


def test_a_teacher_of_another_embedding_size(teacher: mope.DualEncoder, train: mope.Pairs) -> None:
    import open_clip

    from tests.unit.models import TEXT, VISION

    wide = mope.DualEncoder(open_clip.CLIP(32, open_clip.CLIPVisionCfg(**VISION), open_clip.CLIPTextCfg(**TEXT)).eval())
    with pytest.raises(
        ValueError, match=r"L_feat must have embeddings of the same size; found 28 .* and 32 of the teacher"
    ):
        losses(student_of(teacher), train, teacher=wide)
    found = losses(student_of(teacher), train, teacher=wide, loss=DistillationLoss(features=0.0), steps=12)
    assert found[-1] < found[0]


def test_the_teacher_may_compute_in_half(teacher: mope.DualEncoder, train: mope.Pairs) -> None:
    with unchanged(teacher.model):
        whole, half = (
            distill(student_of(teacher), train, teacher=teacher, teacher_precision=own, steps=1, **QUICK)[0].terms
            for own in (None, "bf16")
        )
    assert half["contrastive"] == whole["contrastive"]  # the student's own
    assert half["similarity"] != whole["similarity"]
    assert half["similarity"] == pytest.approx(whole["similarity"], rel=0.05)


def test_a_kept_teacher_in_half_is_the_one_that_is_run(
    teacher: mope.DualEncoder, train: mope.Pairs, tmp_path: Path
) -> None:
    kept = TeacherCache.of(teacher, train, path=tmp_path, hidden=True, precision="bf16")
    live, found = (
        distill(student_of(teacher), train, teacher=source, precision="bf16", steps=1, **QUICK)[0].terms
        for source in (teacher, kept)
    )
    assert found == pytest.approx(live, rel=1e-5)
    with pytest.raises(mope.errors.WrongModelError, match="is for other precision"):
        TeacherCache.of(teacher, train, path=tmp_path, hidden=True)


def test_the_student_ends_with_the_average_of_its_weights(
    teacher: mope.DualEncoder, train: mope.Pairs, tmp_path: Path
) -> None:
    student, expected = student_of(teacher), list[torch.Tensor]()
    count = sum(size.parameters for size in mope.cost.footprints(student).values())

    def average(_: TrainingStep) -> None:
        now = weights(student).clone()
        expected.append(now if not expected else 0.8 * expected[-1] + 0.2 * now)

    arguments: dict[str, Any] = {"teacher": teacher, "steps": 6, "save_every": 2, "ema": 0.8, **QUICK}
    distill(student, train, on_step=average, path=tmp_path / "whole", **arguments)
    assert_close(weights(student), expected[-1], 1e-6)
    assert sum(size.parameters for size in mope.cost.footprints(student).values()) == count
    plain = student_of(teacher)
    distill(plain, train, **arguments | {"ema": None})
    assert not torch.equal(weights(plain), weights(student))
    again = student_of(teacher)
    with pytest.raises(Killed):
        distill(again, train, on_step=_dies_at(5), path=tmp_path / "parts", **arguments)
    for _ in range(2):  # goes on; and is done
        again = student_of(teacher)
        distill(again, train, path=tmp_path / "parts", **arguments)
        assert torch.equal(weights(again), weights(student))


def test_sharding_is_refused(teacher: mope.DualEncoder, train: mope.Pairs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Accelerator, "distributed_type", property(lambda _: "DistributedType.FSDP"))
    student = student_of(teacher)
    with unchanged(student.model), pytest.raises(NotImplementedError, match=r"found FSDP\. .*distill\(shard=True\)"):
        losses(student, train)
