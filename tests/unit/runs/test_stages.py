"""The two stages, and that they go on where they stopped."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

import torch_pruning_mope as mope
from tests.asserts import unchanged
from tests.unit.models import clip, pairs_for
from torch_pruning_mope.runs import RunFolder, TrainingLog, _pipeline

TRAINING: dict[str, Any] = {"steps": 4, "batch_size": 8, "learning_rate": 1e-3, "save_every": 2, "progress": False}
STAGES = {"pretrain": mope.pretrain_stage, "finetune": mope.finetune_stage}
SMALL: dict[str, Any] = {"vision": {"layers": 2}, "text": {"layers": 2}}
"""Scoring takes most of the time here."""


@pytest.fixture
def data() -> dict[str, Any]:
    return {"calibration": pairs_for(clip(), 6), "train": pairs_for(clip(), 24, seed=1)}


def run(stage: str, path: Path, data: dict[str, Any], **more: Any) -> mope.DualEncoder:
    arguments = {"width": "80%", "parameters": "62%", "groups": 2, **TRAINING, **more}
    student = STAGES[stage](clip(**SMALL), **data, path=path, **arguments)
    assert isinstance(student, mope.DualEncoder)
    return student


def weights(encoder: mope.DualEncoder) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in encoder.model.parameters()])


def total(encoder: mope.DualEncoder, tower: str | None = None) -> int:
    return sum(size.parameters for name, size in mope.cost.footprints(encoder).items() if tower in {None, name})


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "training.jsonl").read_text().splitlines()]


RUNS: dict[str, tuple[str, dict[str, Any], list[str], dict[str, int]]] = {
    "pretrain": ("pretrain", {}, ["width", "depth"], {"training": 4}),
    "depth alone": ("finetune", {"width": None}, ["depth"], {"training-depth": 4}),
    "width alone": (
        "finetune",
        {"parameters": None, "width": {"image": "62%"}, "finetune_steps": 3, "uniform": True, "reconstruct": False},
        ["width"],
        {"training-dense": 3, "training-width": 4},
    ),
    "finetune": ("finetune", {}, ["width", "depth"], {"training-width": 4, "training-depth": 4}),
}
Whole = dict[str, tuple[mope.DualEncoder, list[mope.distillation.TrainingStep], Path]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """Uninterrupted runs: the student, its steps as they were told, the folder."""
    made = Whole()
    data = {"calibration": pairs_for(clip(), 6), "train": pairs_for(clip(), 24, seed=1)}
    for name, (stage, options, *_) in RUNS.items():
        path, told = tmp_path_factory.mktemp("run"), list[mope.distillation.TrainingStep]()
        made[name] = run(stage, path, data, on_step=told.append, **options), told, path
    return made


@pytest.mark.parametrize("name", RUNS)
def test_stages_meet_their_budgets_and_keep_what_they_did(name: str, whole: Whole, data: dict[str, Any]) -> None:
    student, told, path = whole[name]
    files, trainings = RUNS[name][2:]
    tower = "image" if name == "width alone" else None
    assert total(student, tower) <= 0.62 * total(mope.DualEncoder(clip(**SMALL)), tower)
    assert (path / f"{files[-1]}-reconstruction.json").exists() == (name != "width alone")
    assert student.embed("image", data["train"].images).isfinite().all()
    for step in files:
        mope.ScoreTable.load(path / f"{step}.json")
        plan = mope.Plan.load(path / f"{step}-plan.json")
        assert plan.scores
        assert plan.layers
    found: dict[str, int] = {}
    for line, entry in zip(lines(path), told, strict=True):
        found[line["training"]] = found.get(line["training"], 0) + 1
        assert (line["step"], line["loss"]) == (entry.step, entry.loss)
        assert line["step"] == found[line["training"]]
    assert found == trainings
    log = (path / "steps.log").read_text()
    assert all(f" {step}: " in log for step in [*files, *trainings])
    assert not list(path.rglob("*.part"))


POINTS = [
    ("pretrain", "score", 1, False),
    ("pretrain", "make_plan", 2, True),
    ("width alone", "distill", 1, False),
    ("finetune", "distill", 2, True),
]


@pytest.mark.parametrize(("name", "at", "call", "planned"), POINTS)
def test_stages_go_on_where_they_stopped(
    name: str,
    at: str,
    call: int,
    planned: bool,
    tmp_path: Path,
    data: dict[str, Any],
    whole: Whole,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Killed as a step begins; and as training is past a checkpoint."""
    stage, options = RUNS[name][:2]
    original, calls = getattr(_pipeline, at), []

    def dies(*args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        if len(calls) < call:
            return original(*args, **kwargs)
        if at == "distill":
            inner = kwargs["on_step"]

            def on_step(entry: mope.distillation.TrainingStep) -> None:
                inner(entry)
                if entry.step == kwargs["steps"] - 1:
                    raise KeyboardInterrupt

            return original(*args, **kwargs | {"on_step": on_step})
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_pipeline, at, dies)
        with pytest.raises(KeyboardInterrupt):
            run(stage, tmp_path, data, **options)
    assert torch.equal(weights(run(stage, tmp_path, data, **options)), weights(whole[name][0]))
    assert lines(tmp_path) == lines(whole[name][2])
    assert ("resumed the plan" in (tmp_path / "steps.log").read_text()) == planned


def test_a_run_that_is_done_is_not_done_again(
    data: dict[str, Any], whole: Whole, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _, path = whole["width alone"]
    monkeypatch.setattr(_pipeline, "score", None)
    logged, seen = lines(path), list[mope.distillation.TrainingStep]()
    again = run("finetune", path, data, on_step=seen.append, **RUNS["width alone"][1])
    assert torch.equal(weights(again), weights(expected))
    assert not seen
    assert lines(path) == logged
    assert "trained 0 steps; 4 were done before" in (path / "steps.log").read_text()


@pytest.mark.parametrize(
    "options",
    [{"finetune_steps": 1}, {"loss": mope.DistillationLoss.paper(), "precision": "bf16"}],
    ids=["embeddings", "hidden states, bf16"],
)
def test_a_teacher_that_is_run_once_teaches_the_same(
    options: dict[str, Any], tmp_path: Path, data: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"parameters": None, "reconstruct": False, **options}
    live, kept = tmp_path / "live", tmp_path / "kept"
    run("finetune", live, data, **options)
    shutil.copytree(live, kept)  # as far as the plan: scoring is not what is looked at
    shutil.rmtree(kept / "training-width")
    told: list[mope.distillation.TrainingStep] = []

    def dies(entry: mope.distillation.TrainingStep) -> None:
        told.append(entry)
        if entry.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("finetune", kept, data, cache_teacher=True, on_step=dies, **options)
    shards = sorted((kept / "teacher").iterdir())
    assert [shard.name for shard in shards] == ["image-00000.safetensors", "text-00000.safetensors"]
    with safe_open(shards[0], "pt") as shard:
        assert ("0" in shard.keys()) == ("loss" in options)  # noqa: SIM118  (no mapping)
    with monkeypatch.context() as patch:  # what is there is not made again
        patch.setattr("torch_pruning_mope.distillation._cache._outputs", None)
        run("finetune", kept, data, cache_teacher=True, on_step=told.append, **options)
    expected, found = ([line for line in lines(path) if line["training"] != "training-dense"] for path in (live, kept))
    assert [line["step"] for line in found] == [1, 2, 3, 4]
    assert [line["loss"] for line in found] == pytest.approx([line["loss"] for line in expected], rel=1e-5)
    log = (kept / "steps.log").read_text()
    assert log.count("teacher: kept what it makes of 24 images") == 2


def test_a_teacher_is_run_once_on_fixed_views_alone(tmp_path: Path, data: dict[str, Any]) -> None:
    batches = list(data["train"].batches(8))
    with pytest.raises(ValueError, match=r"train must be Pairs for cache_teacher=True.*found batches"):
        run("pretrain", tmp_path / "run", data | {"train": batches}, cache_teacher=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"width": None, "parameters": None}, "width or parameters must be given; found neither"),
        ({"width": "3%"}, r"budgets must leave parameters of at least .*, the least that can be reached"),
        ({"parameters": "3%"}, r"budgets must leave parameters of at least .*, the least that can be reached"),
        ({"width": None, "parameters": "20%"}, r"budgets must leave parameters of at least .* with such units"),
        ({"parameters": "80%"}, "parameters must be less than width"),
        ({"finetune_steps": -1}, "finetune_steps must be at least 0; found -1"),
        ({"batch_size": 100}, "batch_size must be at least 2 and at most the 24 training images"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_done(
    options: Any, match: str, tmp_path: Path, data: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=match):
        run("finetune", tmp_path / "run", data, **options)
    assert not (tmp_path / "run").exists()
    with pytest.raises(TypeError, match="unexpected keyword argument 'epochs'"):
        run("finetune", tmp_path / "run", data, epochs=3)


def test_another_run_is_refused(tmp_path: Path, data: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def stops(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(_pipeline, "score", stops)
    with pytest.raises(KeyboardInterrupt):
        run("pretrain", tmp_path, data)
    for options, names in (({"width": "81%"}, "width"), ({"groups": 3, "uniform": True}, "groups, uniform")):
        with pytest.raises(ValueError, match=rf"path must be free, or of the same run; .* has other {names}\."):
            run("pretrain", tmp_path, data, **options)
    with pytest.raises(ValueError, match="has other weights"):
        mope.pretrain_stage(
            clip(seed=1, **SMALL), **data, path=tmp_path, width="80%", parameters="62%", groups=2, **TRAINING
        )
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ValueError, match=r"path must hold a run; .* is damaged"):
        run("pretrain", tmp_path, data)


def test_a_torn_line_is_mended(tmp_path: Path) -> None:
    log = TrainingLog(RunFolder(tmp_path))
    steps = [mope.distillation.TrainingStep(step, float(step)) for step in range(1, 4)]
    for entry in steps:
        log.add(entry)
    with (tmp_path / "training.jsonl").open("a") as file:
        file.write('{"training": "tra')
    again = TrainingLog(RunFolder(tmp_path))
    again.add(steps[2])
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]
    again.finish(steps)
    assert [line["loss"] for line in lines(tmp_path)] == [1.0, 2.0, 3.0]


def test_refusing_leaves_the_model_alone(data: dict[str, Any], tmp_path: Path) -> None:
    model = mope.DualEncoder(clip(**SMALL)).model
    with unchanged(model), pytest.raises(ValueError, match="parameters must be less than the"):
        mope.pretrain_stage(model, **data, path=tmp_path, width="150%", **TRAINING)
