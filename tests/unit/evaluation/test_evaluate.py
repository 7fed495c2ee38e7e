"""Whole evaluations as rows of a file, and CLIP_benchmark's loader."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import torch_pruning_mope as mope
from torch_pruning_mope.data import open_labelled
from torch_pruning_mope.evaluation import OpenClipModel, costs, evaluate, evaluate_retrieval, save_evaluation


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Eight pictures with a caption each."""
    rows = ["filepath,title"]
    for number, (pixels, caption) in enumerate(mope.emoji_scenes("test", 8)):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        rows.append(f"{number}.png,{caption}")
    (tmp_path / "pairs.csv").write_text("\n".join(rows))
    return tmp_path / "pairs.csv"


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """Two colours of background as classes."""
    for colour, name in (((200, 40, 45), "red"), ((50, 90, 200), "blue")):
        (tmp_path / "colours" / name).mkdir(parents=True)
        Image.new("RGB", (64, 64), colour).save(tmp_path / "colours" / name / "0.png")
    return tmp_path / "colours"


def test_a_row_of_retrieval(table: Path) -> None:
    loaded = mope.load_model("tiny")
    row = evaluate(loaded, table, label="tiny", time_it=True, progress=False)
    assert json.loads(json.dumps(row)) == row
    assert {key: row[key] for key in ("model", "criterion", "stage", "task", "data", "pairs", "captions")} == {
        "model": "tiny",
        "criterion": "",
        "stage": "dense",
        "task": "retrieval",
        "data": str(table),
        "pairs": 8,
        "captions": 8,
    }
    encoder = mope.DualEncoder(mope.load_tiny_clip())
    assert row["multiply_adds"] == 67_651_840
    assert row["parameters"] == sum(parameter.numel() for parameter in encoder.model.parameters())
    assert row["latency_ms"] > 0
    expected = evaluate_retrieval(encoder, mope.emoji_pairs("test", 8))
    assert {key: row[key] for key in expected.recalls} == pytest.approx(dict(expected.recalls))
    pairs = mope.emoji_pairs("test", 8)
    row = evaluate(loaded, pairs, stage="pruned", criterion="MoPE", limit=4, ks=(1,))
    assert (row["data"], row["pairs"], row["stage"], row["criterion"]) == ("Pairs", 4, "pruned", "MoPE")
    assert "latency_ms" not in row
    assert "i2t_r5" not in row


def test_a_row_of_zero_shot_classification(classes: Path) -> None:
    loaded = mope.load_model("tiny")
    row = evaluate(loaded, classes, task="zero_shot", templates=["an owl on {}"])
    assert json.loads(json.dumps(row)) == row
    assert (row["pairs"], row["classes"], row["templates"], row["top5"]) == (2, 2, 1, None)
    assert row["top1"] == 100
    opened = open_labelled(classes, loaded.preprocess)
    again = evaluate(loaded, opened, task="zero_shot", templates=["an owl on {}"])
    assert again == row


def test_bad_requests(table: Path, classes: Path) -> None:
    loaded = mope.load_model("tiny")
    with pytest.raises(ValueError, match="task must be 'retrieval' or 'zero_shot'; found 'linear'"):
        evaluate(loaded, table, task="linear")
    with pytest.raises(ValueError, match="split must be left out of data that are open; found Pairs"):
        evaluate(loaded, mope.emoji_pairs("test", 4), split="test")
    with pytest.raises(ValueError, match="data must be a source of labelled images"):
        evaluate(loaded, mope.emoji_pairs("test", 4), task="zero_shot")


def test_files_of_rows_grow_and_renew(tmp_path: Path) -> None:
    path = tmp_path / "evaluation.json"
    dense = {"model": "tiny", "criterion": "", "stage": "dense", "task": "retrieval", "data": "a.csv", "i2t_r1": 1.0}
    pruned = {**dense, "stage": "pruned", "criterion": "MoPE"}
    save_evaluation([dense], path)
    save_evaluation([pruned, {**dense, "i2t_r1": 2.0}], path)
    assert json.loads(path.read_text()) == {"rows": [{**dense, "i2t_r1": 2.0}, pruned]}
    assert [file.name for file in tmp_path.iterdir()] == ["evaluation.json"]
    for content in ("[]", "{", '{"rows": 1}'):
        path.write_text(content)
        with pytest.raises(ValueError, match="path must be a file of evaluations"):
            save_evaluation([dense], path)
        assert path.read_text() == content


def test_costs_of_a_model_as_it_was_loaded() -> None:
    loaded = mope.load_model("tiny")
    before = costs(loaded)
    encoder = mope.DualEncoder(loaded.model)
    assert costs(loaded) == before
    encoder.remove_blocks("image", [0])
    after = costs(loaded)
    assert after["parameters"] < before["parameters"]
    assert after["multiply_adds"] < before["multiply_adds"]


def test_open_clips_methods_for_any_model() -> None:
    from tests.unit import zoo

    encoder = mope.DualEncoder(zoo.build("transformers CLIP"))
    pairs = zoo.pairs_of(encoder, 3)
    adapter = OpenClipModel(encoder)
    with torch.inference_mode():
        found = adapter(image=pairs.images, text=pairs.tokens)
        raw = adapter.encode_text(pairs.tokens)
    torch.testing.assert_close(raw, encoder.embed("text", pairs.tokens))
    torch.testing.assert_close(found["text_features"], raw / raw.norm(dim=-1, keepdim=True))
    torch.testing.assert_close(found["image_features"].norm(dim=-1), torch.ones(3))
    assert float(found["logit_scale"].detach()) == pytest.approx(
        float(torch.as_tensor(encoder.logit_scale).detach()), abs=1e-4
    )
    assert adapter(text=pairs.tokens)["image_features"] is None


def test_clip_benchmark_evaluates_a_pruned_checkpoint(tmp_path: Path) -> None:
    models = pytest.importorskip("clip_benchmark.models", reason="CLIP_benchmark is not installed")
    retrieval = pytest.importorskip(
        "clip_benchmark.metrics.zeroshot_retrieval", reason="CLIP_benchmark is not installed"
    )
    from torch_pruning_mope.evaluation.clip_benchmark import load_mope, register

    encoder = mope.DualEncoder(mope.load_tiny_clip())
    encoder.remove_blocks("image", [2])
    encoder.save_pretrained(tmp_path / "pruned", base="tiny")
    register()
    register()
    assert models.MODEL_TYPES.count("mope") == 1
    model, transform, tokenizer = models.load_clip("mope", str(tmp_path / "pruned"), "", None, "cpu")
    scenes = mope.emoji_scenes("test", 30)
    images = torch.stack([transform(Image.fromarray(pixels)) for pixels, _ in scenes])
    batches = [(images, [[caption] for _, caption in scenes])]
    theirs = retrieval.evaluate(model, batches, tokenizer, "cpu", amp=False, recall_k_list=[1])
    row = evaluate(mope.load_model(str(tmp_path / "pruned")), mope.emoji_pairs("test", 30), ks=(1,))
    assert 100 * theirs["image_retrieval_recall@1"] == pytest.approx(row["t2i_r1"], abs=1e-4)
    assert 100 * theirs["text_retrieval_recall@1"] == pytest.approx(row["i2t_r1"], abs=1e-4)
    assert row["i2t_r1"] > 30
    with pytest.raises(
        ValueError, match="pretrained must be empty, because the model's name says it all; found 'openai'"
    ):
        load_mope("tiny", "openai")


def test_without_clip_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch_pruning_mope.evaluation.clip_benchmark import register

    monkeypatch.setitem(sys.modules, "clip_benchmark.models", None)
    with pytest.raises(ModuleNotFoundError, match=r"found clip_benchmark\.models missing\. pip install clip_benchmark"):
        register()


def test_the_deployment_form_is_timed_if_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[Any] = []

    def time(model: Any, _: Any) -> float:
        timed.append(model)
        return 0.5

    def refuse(_: Any) -> Any:
        raise mope.errors.UnsupportedModelError("unknown")

    monkeypatch.setattr("torch_pruning_mope.evaluation._evaluate.latency", time)
    loaded = mope.load_model("tiny")
    assert costs(loaded, time_it=True)["latency_ms"] == 500
    assert type(timed[0]) is type(mope.fold(loaded.model))
    monkeypatch.setattr("torch_pruning_mope.evaluation._evaluate.fold", refuse)
    costs(loaded, time_it=True)
    assert timed[1] is loaded.model
