"""Accelerate's settings are those of one training, trackers' files say what the history says."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.tracking import GeneralTracker

import torch_pruning_mope as mope
from tests.asserts import unchanged
from tests.unit.distillation.test_train import QUICK, Killed, _dies_at
from tests.unit.models import clip, pairs_for
from torch_pruning_mope.distillation import distill


@pytest.fixture
def student() -> mope.DualEncoder:
    return mope.DualEncoder(clip())


@pytest.fixture
def train() -> mope.Pairs:
    return pairs_for(clip(), 16)


@pytest.fixture(autouse=True)
def _no_state() -> Any:
    yield
    AcceleratorState._reset_state()
    GradientState._reset_state()


def test_every_training_has_its_own_precision(student: mope.DualEncoder, train: mope.Pairs) -> None:
    losses = [distill(mope.DualEncoder(clip()), train, steps=1, precision=p, **QUICK)[0].loss for p in ("no", "bf16")]
    losses.append(distill(mope.DualEncoder(clip()), train, steps=1, **QUICK)[0].loss)
    assert losses[0] == losses[2] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    assert Accelerator(mixed_precision="bf16").mixed_precision == "bf16"  # nothing is left behind


def test_an_accelerator_of_the_users_own_stays_as_it_was(student: mope.DualEncoder, train: mope.Pairs) -> None:
    own = Accelerator(mixed_precision="bf16", gradient_accumulation_steps=4)

    def as_it_was() -> bool:
        return (own.mixed_precision, own.state.mixed_precision, own.gradient_accumulation_steps) == ("bf16", "bf16", 4)

    found: list[torch.dtype] = []
    handle = student.model.visual.transformer.resblocks[0].mlp.c_fc.register_forward_hook(
        lambda _module, _inputs, output: found.append(output.dtype)
    )
    distill(student, train, steps=1, precision="no", **QUICK)
    handle.remove()
    assert set(found) == {torch.float32}
    assert as_it_was()
    with pytest.raises(Killed):
        distill(student, train, steps=2, precision="no", on_step=_dies_at(1), **QUICK)
    assert as_it_was()
    with pytest.raises(ValueError, match="precision must be 'no' or 'bf16' on a CPU; found 'fp16'"):
        distill(student, train, steps=1, precision="fp16", **QUICK)
    assert as_it_was()


def test_processes_that_would_train_alone_are_told(
    student: mope.DualEncoder, train: mope.Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    Accelerator()  # settles what all others in this process see
    monkeypatch.setenv("WORLD_SIZE", "2")
    with unchanged(student.model), pytest.raises(RuntimeError, match=r"the 2 processes .* set up for 1"):
        distill(student, train, steps=1, **QUICK)


def test_scaled_losses_change_nothing_in_chunks_either(train: mope.Pairs, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments: dict[str, Any] = {"steps": 3, "max_norm": None, **QUICK}
    expected = [entry.loss for entry in distill(mope.DualEncoder(clip()), train, **arguments)]
    init = Accelerator.__init__

    def scaled(self: Accelerator, **kwargs: Any) -> None:
        init(self, **kwargs)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)  # as fp16 has on GPUs

    monkeypatch.setattr(Accelerator, "__init__", scaled)
    for chunks in (1, 2):
        found = [entry.loss for entry in distill(mope.DualEncoder(clip()), train, chunks=chunks, **arguments)]
        assert found == pytest.approx(expected, rel=1e-4)


class Tracker(GeneralTracker):  # type: ignore[misc]
    name = "mine"
    requires_logging_directory = False
    tracker = None

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Any, Any]] = []
        self.finished = 0

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.configuration = values

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        self.seen.append((step, values["loss"]))

    def finish(self) -> None:
        self.finished += 1


def test_trackers_are_finished_on_every_path(student: mope.DualEncoder, train: mope.Pairs, tmp_path: Path) -> None:
    tracker = Tracker()
    history = distill(student, train, steps=2, log_with=tracker, **QUICK)
    assert tracker.seen == [(entry.step, entry.loss) for entry in history]
    assert tracker.configuration["steps"] == 2
    with pytest.raises(Killed):
        distill(student, train, steps=2, log_with=[tracker], on_step=_dies_at(1), **QUICK)
    assert tracker.finished == 2


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder)).Reload()
    return {tag: [(event.step, event.value) for event in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def test_tensorboard_reads_what_was_logged(student: mope.DualEncoder, train: mope.Pairs, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    teacher = mope.DualEncoder(clip(seed=1))
    for name, steps in (("first", 3), ("second", 2)):  # each in its own folder
        history = distill(
            student, train, teacher=teacher, steps=steps, path=tmp_path / name, log_with="tensorboard", **QUICK
        )
        found = scalars(tmp_path / name / "mope")
        assert found.keys() == {"loss", "learning_rate", "contrastive", "similarity", "features"}
        values = [{"loss": e.loss, "learning_rate": e.learning_rate, **e.terms} for e in history]
        for tag, events in found.items():
            assert [step for step, _ in events] == list(range(1, steps + 1))
            assert [value for _, value in events] == pytest.approx([each[tag] for each in values], rel=1e-6)


def test_trackers_that_cannot_write_are_refused(student: mope.DualEncoder, train: mope.Pairs, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    with pytest.raises(ImportError, match="log_with must name trackers that are installed; found aim"):
        distill(student, train, steps=1, log_with=["tensorboard", "aim"], path=tmp_path, **QUICK)
    for name in ("tensorboard", "all"):
        with pytest.raises(ValueError, match=r"path must be given for log_with='tensorboard'.*found None"):
            distill(student, train, steps=1, log_with=name, **QUICK)
