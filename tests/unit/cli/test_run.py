"""A whole run by command line, on a model of two layers with few pairs."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

import torch_pruning_mope as mope
from tests.unit.ranks import run_ranks
from torch_pruning_mope.importance import stock_scores

from .commands import PAIRS, SCORE, TRAIN, files_of, mope_command, one_error, weights, words


def test_scores_plan_and_pruned_model_are_those_of_the_library(begun: Path, small: Path) -> None:
    encoder = mope.DualEncoder(mope.load(small).model)
    pairs = mope.emoji_pairs("calibration", 16)
    table = mope.score(encoder, pairs, metric="contrastive_loss", groups=2, progress=False)
    assert mope.ScoreTable.load(begun / "scores.json").scores == table.scores
    plan = mope.make_plan(encoder, table, parameters={"image": "60%", "text": "70%"}, round_to=8)
    assert mope.Plan.load(begun / "plan.json").units == plan.units
    plan.apply(encoder)
    images = mope.emoji_pairs("test", 2).images
    with torch.inference_mode():
        assert torch.equal(mope.load(begun / "pruned").model.encode_image(images), encoder.model.encode_image(images))


def test_what_is_left_is_reconstructed_unless_told_not_to(begun: Path, small: Path) -> None:
    encoder, dense = (mope.DualEncoder(mope.load(small).model) for _ in range(2))
    mope.Plan.load(begun / "plan.json").apply(encoder)
    mope.reconstruct(encoder, dense, mope.emoji_pairs("calibration", 16), progress=False)
    mope_command("prune", begun, "--quiet")
    wanted = encoder.model.state_dict()
    found = weights(begun / "pruned")
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    assert json.loads((begun / "reconstruction.json").read_text())["inputs"]["image"] == 16
    mope_command("reconstruct", begun, "--pairs", 24, "--part", "train", "--quiet")
    again = weights(begun / "pruned")
    assert not all(torch.equal(again[name], tensor) for name, tensor in wanted.items())
    assert json.loads((begun / "reconstruction.json").read_text())["inputs"]["image"] == 24
    mope_command("evaluate", begun, *PAIRS, "--no-latency", "--against", "l1")  # which is refitted as the run's own was
    mope_command("prune", begun, "--no-reconstruct")
    assert not (begun / "reconstruction.json").exists()


def test_training_is_logged_and_is_not_done_again(begun: Path) -> None:
    result = mope_command("distill", begun, *TRAIN, "--json", "-")
    assert json.loads(result.stdout)["steps"] == 2
    lines = [json.loads(line) for line in (begun / "training.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert set(lines[0]["terms"]) == {"contrastive", "similarity", "features"}
    before = weights(begun / "distilled")
    mope_command("distil", begun)  # the settings are those of the last time, and nothing is left to do
    after = weights(begun / "distilled")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert yaml.safe_load((begun / "config.yaml").read_text())["distill"]["steps"] == 2


def _distils(_rank: int, run: Path) -> None:
    mope_command("distill", run, "--shard", *TRAIN)


def test_two_processes_train_as_one(begun: Path, tmp_path: Path) -> None:
    two = Path(shutil.copytree(begun, tmp_path / "two"))
    mope_command("distill", begun, *TRAIN)
    assert run_ranks(_distils, two) == [0, 0]
    losses = [
        [json.loads(line)["loss"] for line in (run / "training.jsonl").read_text().splitlines()] for run in (begun, two)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    one = weights(begun / "distilled")
    for name, tensor in weights(two / "distilled").items():
        if not name.endswith("k_proj.bias"):  # has no gradient but rounding, which Adam makes into whole steps
            assert torch.allclose(one[name], tensor, atol=1e-5), name


def test_the_file_reproduces_the_run(begun: Path, tmp_path: Path) -> None:
    kept = yaml.safe_load((begun / "config.yaml").read_text())
    assert kept["score"]["kind"] == ["head", "neurons"]
    assert kept["versions"]["torch"] == torch.__version__.partition("+")[0]
    mope_command("run", begun, tmp_path / "again")
    for name in ("scores.json", "plan.json", "pruned/model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (begun / name).read_bytes()
    mope_command("score", tmp_path / "b", "--config", begun, "--pairs", 12, "--quiet")  # flags go before the file
    settings = mope.ScoreTable.load(tmp_path / "b" / "scores.json").settings
    assert (settings["images"], settings["groups"]) == (12, 2)


def test_the_range_of_budgets(begun: Path, tmp_path: Path, small: Path) -> None:
    before = (begun / "plan.json").read_bytes()
    assert "what budgets can ask for" in mope_command("plan", begun).output
    assert (begun / "plan.json").read_bytes() == before
    rules = ("--model", small, "--round-to", 8, "--min-heads", 1)
    shown = mope_command("plan", *rules, "--json", tmp_path / "range.json")
    assert "what budgets can ask for" in shown.output
    found = json.loads((tmp_path / "range.json").read_text())
    asked = mope.plan_range(mope.DualEncoder(mope.load(small).model), round_to=8, min_heads=1)
    for side in ("smallest", "largest"):
        assert {tower: size["parameters"] for tower, size in found[side].items()} == {
            tower: size.parameters for tower, size in getattr(asked, side).items()
        }
        assert set(found["latency"][side]) == {"image", "text"}
    assert "can be met" in mope_command("plan", "--model", small, "--parameters", "60%").output
    refused = mope_command("plan", "--model", small, "--parameters", "60%", "--min-heads", 4, "--latency", "1%", code=2)
    assert "the least that can be reached" in words(refused.stderr)
    assert "one of RUN and --model must be given; found none" in one_error(mope_command("plan", code=2))


def test_the_shipped_form_may_be_what_a_budget_of_time_is_of(begun: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[Any, Any]] = []

    def clock(of: Any, *, batch_size: int, quantize: str | None, pairs: Any) -> dict[str, float]:
        given.append((quantize, pairs and pairs.num_images))
        return {tower: batch_size * size.multiply_adds * 1e-9 for tower, size in mope.cost.footprints(of).items()}

    monkeypatch.setattr("torch_pruning_mope.deploy.shipped_latencies", clock)
    for form, expected in (("onnx", (None, None)), ("int8", ("int8", 256))):
        mope_command("plan", begun, "--latency", "70%", "--timed-as", form)
        assert set(given) == {expected}
        given.clear()
        seconds = json.loads((begun / "plan.json").read_text())["settings"]["latency"]
        assert sum(seconds["after"].values()) <= 0.7 * sum(seconds["before"].values())
    refused = mope_command("plan", "--model", "tiny", "--latency", "70%", "--timed-as", "int8", code=2)
    assert "--timed-as int8 must come with RUN and --latency" in one_error(refused)


def test_evaluation_beside_another_criterion_export_and_report(begun: Path, tmp_path: Path, small: Path) -> None:
    """The other criterion is cut by the plan's rules, tower by tower as the budget was, on the run's calibration pairs."""
    mope_command("evaluate", begun, *PAIRS, "--against", "taylor", "--json", tmp_path / "rows.json")
    rows = json.loads((begun / "evaluation.json").read_text())["rows"]
    assert rows == json.loads((tmp_path / "rows.json").read_text())["rows"]
    dense, pruned, taylor = rows
    assert [(row["criterion"], row["stage"]) for row in rows] == [
        ("dense", "dense"),
        ("MoPE", "pruned"),
        ("Taylor", "pruned"),
    ]
    assert all(row["latency_ms"] > 0 for row in rows)
    assert {row["model"] for row in rows} == {"small"}
    assert pruned["parameters"] < dense["parameters"]
    model, pairs = mope.load(small).model, mope.emoji_pairs("test", 16)
    assert dense["i2t_r1"] == mope.evaluate_retrieval(model, pairs, progress=False).to_dict()["i2t_r1"]
    encoder = mope.DualEncoder(model)
    table = stock_scores(encoder, mope.emoji_pairs("calibration", 16), "taylor")
    own = mope.cost.footprints(mope.DualEncoder(mope.load(begun / "pruned").model))
    left = {tower: size.parameters for tower, size in own.items()}
    mope.make_plan(encoder, table, parameters=left, round_to=8, refill=False).apply(encoder)
    expected = mope.evaluate_retrieval(encoder.model, pairs, progress=False).to_dict()
    assert {name: taylor[name] for name in ("i2t_r1", "t2i_r5")} == {
        name: expected[name] for name in ("i2t_r1", "t2i_r5")
    }
    mope_command("export", begun, "--format", "torch")
    program = torch.export.load(begun / "export-torch" / "image.pt2").module()
    with torch.inference_mode():
        wanted = mope.load(begun / "pruned").model.encode_image(pairs.images[:3])
        torch.testing.assert_close(program(pairs.images[:3]), wanted, rtol=1e-4, atol=1e-5)
    mope_command("report", begun, "--pairs", 16, "--examples", 4, "--title", "A <small> run")
    page = (begun / "report.html").read_text()
    assert "A &lt;small&gt; run" in page
    assert "Taylor, pruned" in page
    assert str(tmp_path) not in page + (begun / "examples.json").read_text() + (begun / "evaluation.json").read_text()


def test_a_stage_from_scoring_to_the_rows(tmp_path: Path, small: Path) -> None:
    run = tmp_path / "stage"
    train = ("--train-pairs", 32, "--steps", 1, "--batch-size", 16)
    budgets = ("--width", "image=80%,text=95%", "--parameters", "image=70%")
    command = ("pretrain-stage", run, "--model", small, *PAIRS, "--groups", 1, *budgets, *train, "--cache")
    mope_command(*command)
    assert list((run / "teacher").glob("*.safetensors"))
    assert yaml.safe_load((run / "config.yaml").read_text())["pretrain-stage"]["cache"] is True
    before = (run / "distilled" / "model.safetensors").read_bytes()
    mope_command("pretrain-stage", run)  # bare: goes on, and all is done
    assert (run / "distilled" / "model.safetensors").read_bytes() == before
    settings = (run / "config.yaml").read_bytes()
    assert "has other groups" in one_error(mope_command("pretrain-stage", run, "--groups", 2, code=2))
    assert (run / "config.yaml").read_bytes() == settings
    mope_command("evaluate", run, *PAIRS, "--no-latency")
    rows = json.loads((run / "evaluation.json").read_text())["rows"]
    assert [row["stage"] for row in rows] == ["dense", "distilled"]


def test_one_command_from_a_name_to_a_page(tmp_path: Path, small: Path) -> None:
    run = tmp_path / "run"
    options = ("--parameters", "60%", "--groups", 2, "--stages", 1, "--no-time", "--test-pairs", 16)
    result = mope_command("compress", run, "--model", small, *options, *PAIRS, "--json", "-")
    rows = json.loads(result.stdout)["rows"]
    assert [row["stage"] for row in rows] == ["dense", "pruned"]
    page = (run / "report.html").read_text()
    assert "<html" in page
    assert not any(text in page for text in ("No scores", "No plan", "No recall"))  # those of its stages
    pairs = mope.emoji_pairs("calibration", 16)
    asked = mope.compress(mope.load(small).model, pairs, parameters="60%", groups=2, stages=1, progress=False)
    found = weights(run / "pruned")
    assert all(torch.equal(found[name], tensor) for name, tensor in asked.model.state_dict().items())
    before = files_of(run)
    mope_command("compress", run)  # bare: nothing is left to do
    assert files_of(run)["pruned/model.safetensors"] == before["pruned/model.safetensors"]
    settings = (run / "config.yaml").read_bytes()
    assert "has other parameters" in one_error(mope_command("compress", run, "--parameters", "70%", code=2))
    assert (run / "config.yaml").read_bytes() == settings


def test_one_model_by_name(small: Path) -> None:
    result = mope_command("evaluate", "--model", small, *PAIRS, "--no-latency", "--json", "-")
    assert json.loads(result.stdout)["rows"][0]["pairs"] == 16
    assert "one of RUN and --model" in one_error(mope_command("evaluate", code=2))
    refused = mope_command("evaluate", "--model", "tiny", "--against", "l1", code=2)
    assert "--against goes with RUN" in one_error(refused)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CSV of pairs."""
    folder = tmp_path_factory.mktemp("data")
    rows = ["filepath,title"]
    for number, (pixels, caption) in enumerate(mope.emoji_scenes("train", 60)):
        Image.fromarray(pixels).save(folder / f"{number}.png")
        rows.append(f"{number}.png,{caption}")
    (folder / "pairs.csv").write_text("\n".join(rows))
    return folder / "pairs.csv"


def test_a_csv_is_divided_and_a_run_survives_a_move(
    table: Path, tmp_path: Path, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "here"
    shutil.copytree(table.parent, home / "data")
    shutil.copytree(small, home / "small")
    monkeypatch.chdir(home)
    data = ("--data", "data/pairs.csv", "--calibration", 0.3, "--test", 0.3)
    score = ("score", "runs/a", "--model", "small", *data, *SCORE[2:])
    mope_command(*score)
    assert mope.ScoreTable.load(home / "runs" / "a" / "scores.json").settings["images"] == 18
    monkeypatch.chdir(tmp_path)
    run = (home.rename(tmp_path / "there")) / "runs" / "a"
    mope_command("plan", run, "--parameters", "70%")
    mope_command("prune", run)
    mope_command("distill", run, "--steps", 1, "--batch-size", 12, "--quiet")
    text = (run / "config.yaml").read_text()
    assert yaml.safe_load(text)["score"]["data"] == "../../data/pairs.csv"
    assert "data" not in yaml.safe_load(text)["distill"]
    assert str(tmp_path) not in text
    (run.parent.parent / "data").rename(tmp_path / "gone")
    refused = one_error(mope_command("evaluate", run, *PAIRS, code=2))
    assert "found nothing at" in refused
    assert "there/data/pairs.csv" in refused
    mope_command("score", run, "--data", "gone/pairs.csv")  # the same pairs elsewhere: the run is theirs again
    assert yaml.safe_load((run / "config.yaml").read_text())["score"]["data"] == f"{tmp_path}/gone/pairs.csv"
