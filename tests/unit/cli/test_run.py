"""A whole run by command line, on the tiny CLIP with few pairs."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from typer.testing import CliRunner

import torch_pruning_mope as mope
from torch_pruning_mope.cli import app
from torch_pruning_mope.importance import stock_scores

SMALL = ("--pairs", 16, "--quiet")
SCORE = (*SMALL, "--groups", 2, "--kind", "head", "--kind", "neurons")
TRAIN = ("--pairs", 32, "--steps", 2, "--batch-size", 16, "--quiet")


def mope_command(*arguments: object, code: int = 0) -> Any:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, f"{result.output}\n{result.stderr}\n{result.exception!r}"
    return result


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run up to the pruned model."""
    run = tmp_path_factory.mktemp("runs") / "a"
    mope_command("score", run, *SCORE)
    mope_command("plan", run, "--parameters", "image=50%,text=60%", "--round-to", 8)
    mope_command("prune", run)
    return run


def test_scores_are_those_of_the_library(begun: Path) -> None:
    found = mope.ScoreTable.load(begun / "scores.json")
    pairs = mope.emoji_pairs("calibration", 16)
    asked = mope.score(
        mope.DualEncoder(mope.load_tiny_clip()), pairs, metric="contrastive_loss", groups=2, progress=False
    )
    assert found.scores == asked.scores


def test_the_pruned_model_is_the_planned_one(begun: Path) -> None:
    plan = mope.Plan.load(begun / "plan.json")
    encoder = mope.DualEncoder(mope.load_tiny_clip())
    plan.apply(encoder)
    loaded = mope.load(begun / "pruned").model
    images = mope.emoji_pairs("test", 2).images
    with torch.inference_mode():
        assert torch.equal(loaded.encode_image(images), encoder.model.encode_image(images))


def test_training_goes_on_and_saves(begun: Path) -> None:
    result = mope_command("distill", begun, *TRAIN, "--json", "-")
    assert json.loads(result.stdout[result.stdout.index("{") :])["steps"] == 2
    lines = [json.loads(line) for line in (begun / "training.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert set(lines[0]["terms"]) == {"contrastive", "similarity", "features"}
    before = mope.load(begun / "distilled").model.state_dict()
    mope_command("distill", begun, *TRAIN)  # nothing is left to do: the same model
    after = mope.load(begun / "distilled").model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_two_processes_train_as_one(begun: Path, tmp_path: Path) -> None:
    one, two = (
        shutil.copytree(begun, tmp_path / name, ignore=shutil.ignore_patterns("training*", "distilled"))
        for name in ("one", "two")
    )
    mope_command("distill", one, *TRAIN)
    launched = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2)
    command = (*launched, "-m", "torch_pruning_mope", "distill", two, "--shard", *TRAIN)
    subprocess.run([str(part) for part in command], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    losses = [
        [json.loads(line)["loss"] for line in (run / "training.jsonl").read_text().splitlines()] for run in (one, two)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    weights = [mope.load(run / "distilled").model.state_dict() for run in (one, two)]
    for name, tensor in weights[1].items():
        if not name.endswith("k_proj.bias"):  # has no gradient but rounding, which Adam makes into whole steps
            assert torch.allclose(weights[0][name], tensor, atol=1e-5), name


def test_the_file_reproduces_the_run(begun: Path, tmp_path: Path) -> None:
    kept = yaml.safe_load((begun / "config.yaml").read_text())
    assert kept["score"]["kind"] == ["head", "neurons"]
    assert kept["versions"]["torch"] == torch.__version__.partition("+")[0]
    wanted = {name: kept[name] for name in ("score", "plan", "prune")}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(wanted, sort_keys=False))
    mope_command("run", tmp_path / "mine.yaml", tmp_path / "again")
    assert (tmp_path / "again" / "plan.json").read_text() == (begun / "plan.json").read_text()
    names = ("scores.json", "plan.json", "pruned/model.safetensors")
    assert all((tmp_path / "again" / name).read_bytes() == (begun / name).read_bytes() for name in names[1:])


def test_flags_go_before_the_file(begun: Path, tmp_path: Path) -> None:
    mope_command("score", tmp_path / "b", "--config", begun, "--pairs", 12, "--quiet")
    table = mope.ScoreTable.load(tmp_path / "b" / "scores.json")
    assert table.settings["images"] == 12
    assert table.settings["groups"] == 2


def test_without_a_budget_the_range_is_shown(begun: Path) -> None:
    before = (begun / "plan.json").read_bytes()
    assert "what budgets can ask for" in mope_command("plan", begun).output
    assert (begun / "plan.json").read_bytes() == before


def test_the_range_of_a_model_that_nobody_scored(tmp_path: Path) -> None:
    shown = mope_command(
        "plan", "--model", "tiny", "--round-to", 8, "--min-heads", 1, "--json", tmp_path / "range.json"
    )
    assert "what budgets can ask for" in shown.output
    found = json.loads((tmp_path / "range.json").read_text())
    asked = mope.plan_range(mope.DualEncoder(mope.load_tiny_clip()), round_to=8, min_heads=1)
    for side in ("smallest", "largest"):
        assert {tower: size["parameters"] for tower, size in found[side].items()} == {
            tower: size.parameters for tower, size in getattr(asked, side).items()
        }
        assert set(found["latency"][side]) == {"image", "text"}
    assert "can be met" in mope_command("plan", "--model", "tiny", "--parameters", "30%").output
    refused = mope_command(
        "plan", "--model", "tiny", "--parameters", "30%", "--min-heads", 4, "--latency", "1%", code=2
    )
    assert "the least that can be reached" in " ".join(refused.stderr.split())
    assert "one of RUN and --model must be given; found none" in mope_command("plan", code=2).stderr


def test_evaluation_export_and_report(begun: Path, tmp_path: Path) -> None:
    mope_command("evaluate", begun, *SMALL, "--json", tmp_path / "rows.json")
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [row["stage"] for row in rows][:2] == ["dense", "pruned"]
    assert rows == json.loads((begun / "evaluation.json").read_text())["rows"]
    found = mope.evaluate_retrieval(mope.load_tiny_clip(), mope.emoji_pairs("test", 16), progress=False)
    assert rows[0]["i2t_r1"] == found.to_dict()["i2t_r1"]
    assert rows[1]["parameters"] < rows[0]["parameters"]
    assert all(row["latency_ms"] > 0 for row in rows)
    mope_command("export", begun, "--format", "torch")
    program = torch.export.load(begun / "export-torch" / "image.pt2").module()
    name = "distilled" if (begun / "distilled").exists() else "pruned"
    images = mope.emoji_pairs("test", 3).images
    with torch.inference_mode():
        torch.testing.assert_close(
            program(images), mope.load(begun / name).model.encode_image(images), rtol=1e-4, atol=1e-5
        )
    mope_command("report", begun, "--pairs", 16, "--examples", 4, "--title", "A <small> run")
    page = (begun / "report.html").read_text()
    assert "A &lt;small&gt; run" in page


def test_other_criteria_at_the_same_size(begun: Path, tmp_path: Path) -> None:
    """Cut by the plan's rules, tower by tower as the plan's budget was, on the run's calibration pairs."""
    run = Path(shutil.copytree(begun, tmp_path / "run"))
    shutil.rmtree(run / "distilled", ignore_errors=True)
    mope_command("evaluate", run, *SMALL, "--against", "taylor", "--no-latency")
    rows = json.loads((run / "evaluation.json").read_text())["rows"]
    named = [(row["criterion"], row["stage"]) for row in rows if "latency_ms" not in row]
    assert named == [("dense", "dense"), ("MoPE", "pruned"), ("Taylor", "pruned")]
    encoder = mope.DualEncoder(mope.load_tiny_clip())
    table = stock_scores(encoder, mope.emoji_pairs("calibration", 16), "taylor")
    own = mope.footprints(mope.DualEncoder(mope.load(run / "pruned").model))
    left = {tower: size.parameters for tower, size in own.items()}
    mope.make_plan(encoder, table, parameters=left, round_to=8, refill=False).apply(encoder)
    assert all(size.parameters <= left[tower] for tower, size in mope.footprints(encoder).items())
    expected = mope.evaluate_retrieval(encoder.model, mope.emoji_pairs("test", 16), progress=False).to_dict()
    taylor = next(row for row in rows if row["criterion"] == "Taylor")
    assert {name: taylor[name] for name in ("i2t_r1", "t2i_r5")} == {
        name: expected[name] for name in ("i2t_r1", "t2i_r5")
    }
    assert taylor["parameters"] == sum(parameter.numel() for parameter in encoder.model.parameters())
    mope_command("report", run, "--examples", 0)
    assert "Taylor, pruned" in (run / "report.html").read_text()
    refused = mope_command("evaluate", "--model", "tiny", "--against", "l1", code=2)
    assert "--against goes with RUN" in " ".join(refused.stderr.split())


def test_a_stage_from_scoring_to_the_report(tmp_path: Path) -> None:
    run = tmp_path / "stage"
    train = ("--train-pairs", 32, "--steps", 1, "--batch-size", 16)
    budgets = ("--width", "image=80%,text=95%", "--parameters", "image=70%")
    mope_command("pretrain-stage", run, *SMALL, "--groups", 1, *budgets, *train, "--cache")
    assert list((run / "teacher").glob("*.safetensors"))
    assert yaml.safe_load((run / "config.yaml").read_text())["pretrain-stage"]["cache"] is True
    assert mope.load(run / "distilled").model is not None
    mope_command("evaluate", run, *SMALL)
    stages = [row["stage"] for row in json.loads((run / "evaluation.json").read_text())["rows"]]
    assert stages == ["dense", "distilled"]
    mope_command("report", run, "--examples", 0)
    assert "scores.json" not in (run / "report.html").read_text().partition("Missing")[2][:200]
    refused = mope_command("pretrain-stage", tmp_path / "x", "--finetune-steps", 2, code=2)
    assert "--finetune-steps must be 0 for pretrain-stage" in " ".join(refused.stderr.split())


def test_one_model_by_name(tmp_path: Path) -> None:
    result = mope_command("evaluate", "--model", "tiny", *SMALL, "--json", "-")
    assert json.loads(result.stdout[result.stdout.index("{") :])["rows"][0]["pairs"] == 16
    assert "one of RUN and --model" in mope_command("evaluate", code=2).stderr


def test_a_csv_is_divided_and_every_command_takes_its_part(tmp_path: Path) -> None:
    rows = ["filepath,title"]
    for number, (pixels, caption) in enumerate(mope.emoji_scenes("train", 60)):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        rows.append(f"{number}.png,{caption}")
    (tmp_path / "pairs.csv").write_text("\n".join(rows))
    run = tmp_path / "run"
    data = ("--data", tmp_path / "pairs.csv", "--calibration", 0.3, "--test", 0.3)
    mope_command("score", run, *data, "--groups", 2, "--kind", "neurons", "--quiet")
    assert mope.ScoreTable.load(run / "scores.json").settings["images"] == 18
    mope_command("plan", run, "--parameters", "70%")
    mope_command("prune", run)
    mope_command("distill", run, "--steps", 1, "--batch-size", 12, "--quiet")
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert "data" not in config["distill"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("plan", "nowhere", "--parameters", "50%"), "RUN must be a folder that one of mope score"),
        (("score", "run", "--model", "no-such-model"), "no-such-model"),
        (("score", "run", "--data", "missing.csv"), "found nothing at 'missing.csv'"),
        (("score", "run", "--metric", "fid", *SCORE), "metric must be"),
        (("score", "run", "--part", "test"), "No such option"),
    ],
)
def test_bad_input_is_one_line(
    arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = mope_command(*arguments, code=2)
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.output + result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("plan", "--parameters", "1%"), "the least that can be reached"),
        (("plan", "--parameters", "image=50%,sound=2"), "must be for image, text or both"),
        (("distill", "--root", "x"), "--root and --split go with --data"),
    ],
)
def test_bad_input_to_a_run(begun: Path, arguments: tuple[str, ...], message: str) -> None:
    name, *rest = arguments
    assert message in " ".join(mope_command(name, begun, *rest, code=2).stderr.split())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("score: {modle: tiny}", "modle, which it has not"),
        ("score: [", "must be a YAML file"),
        ("- score", "must map commands to their settings"),
        ("scores: {}", "sections called as commands; found scores"),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    command: Callable[..., Any] = mope_command
    first = command("run", tmp_path / "bad.yaml", tmp_path / "run", code=2)
    assert message in " ".join(first.stderr.replace("│", " ").split())
    assert not (tmp_path / "run").exists()
