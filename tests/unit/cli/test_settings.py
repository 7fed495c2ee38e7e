"""Settings are written down once a command has been accepted, and later commands hold the run to them."""

import threading
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

import torch_pruning_mope as mope
from torch_pruning_mope.runs import RunFolder

from .commands import PAIRS, TRAIN, files_of, mope_command, one_error

REFUSED: list[tuple[tuple[object, ...], int]] = [
    (("score", "--estimate", "--groups", 4), 0),
    (("score", "--split-seed", 7), 2),
    (("score", "--model", "tiny"), 2),
    (("score", "--metric", "recall_mean"), 2),
    (("score", "--metric", "fid"), 2),
    (("plan",), 0),
    (("plan", "--parameters", "1%"), 2),
    (("distill", "--steps", 2, "--batch-size", 5000, "--pairs", 32), 2),
    (("distill", "--steps", 2, "--pairs", 32, "--log-with", "nothing"), 2),
    (("evaluate", "--part", "all", *PAIRS), 2),
    (("pretrain-stage", "--width", "80%", "--train-pairs", 32), 2),
]


def test_what_is_refused_or_estimates_changes_nothing(begun: Path) -> None:
    before = files_of(begun)
    for (name, *options), code in REFUSED:
        mope_command(name, begun, *options, code=code)
        assert files_of(begun) == before, (name, *options)


def test_another_training_is_refused(begun: Path) -> None:
    mope_command("distill", begun, *TRAIN)
    before = files_of(begun)
    mope_command("distill", begun, "--learning-rate", 1e-3, code=2)
    assert files_of(begun) == before


def test_a_bare_command_goes_on_with_the_settings_of_the_run(begun: Path, small: Path) -> None:
    before = files_of(begun)
    mope_command("score", begun)
    after = files_of(begun)
    assert list(yaml.safe_load(after.pop("config.yaml"))) == ["versions", "plan", "prune", "score"]
    assert after == {name: content for name, content in before.items() if name != "config.yaml"}
    assert RunFolder(begun).settings()["score"]["model"] == str(small)


@pytest.mark.parametrize("changed", [{"model": "tiny"}, {"split_seed": 7}, {"test": 0.3}, {"seed": 1}])
def test_settings_that_are_no_longer_those_of_the_scores_are_refused(begun: Path, changed: dict[str, Any]) -> None:
    file = begun / "config.yaml"
    content = yaml.safe_load(file.read_text())
    content["score"] |= changed
    file.write_text(yaml.safe_dump(content))
    before = files_of(begun)
    of_pairs = [("distill", *TRAIN), ("evaluate", *PAIRS), ("report", "--pairs", 16)]
    of_model = [("plan", "--parameters", "80%"), ("prune",)]
    for name, *options in of_pairs + (of_model if "model" in changed else []):
        refused = one_error(mope_command(name, begun, *options, code=2))
        assert "has other weights" in refused if "model" in changed else "has other data or division" in refused
        assert files_of(begun) == before


def test_another_table_in_the_folder_is_refused(begun: Path, small: Path) -> None:
    other = mope.score(mope.DualEncoder(mope.load(small).model), mope.emoji_pairs("test", 8), groups=2, progress=False)
    other.save(begun / "scores.json")
    assert "has other calibration pairs" in one_error(mope_command("plan", begun, "--parameters", "80%", code=2))


def test_a_run_stops_at_its_first_failure(tmp_path: Path, small: Path) -> None:
    settings = {
        "score": {"model": str(small), "pairs": 16, "groups": 2, "kind": ["head"]},
        "plan": {"parameters": "1%"},
        "prune": {},
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    result = mope_command("run", tmp_path / "mine.yaml", tmp_path / "run", code=2)
    assert "the least that can be reached" in result.stderr
    assert "mope prune" not in result.output
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["config.yaml", "run.json", "scores.json"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("score: {modle: tiny}", "modle, which it has not"),
        ("score: {allow-commands: true}", "allow_commands, which it has not, or not in a file"),
        ("score: [", "must be a YAML file"),
        ("- score", "must map commands to their settings"),
        ("scores: {}", "sections called as commands; found scores"),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    assert message in mope_command("run", tmp_path / "bad.yaml", tmp_path / "run", code=2).stderr
    assert not (tmp_path / "run").exists()


def test_a_foreign_file_writes_within_the_run_alone(begun: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "kept.html").write_text("mine")
    (begun / "link").symlink_to(victim)
    for place in (str(victim / "kept.html"), "../victim/kept.html", "../victim/new.html", "link/kept.html"):
        mope_command("report", begun, "--config", _file(tmp_path, {"report": {"examples": 0, "output": place}}), code=2)
    for place in (str(victim / "program"), "../victim", "link"):
        refused = _file(tmp_path, {"export": {"format": "torch", "output": place}})
        assert "must be a path within RUN" in one_error(mope_command("export", begun, "--config", refused, code=2))
    assert [path.name for path in victim.iterdir()] == ["kept.html"]
    assert (victim / "kept.html").read_text() == "mine"
    before = files_of(begun)
    for place in ("config.yaml", "pruned/model.safetensors"):  # within the run, and not ours to replace
        own = _file(tmp_path, {"report": {"examples": 0, "output": place}})
        assert "--output must be new" in one_error(mope_command("report", begun, "--config", own, code=2))
    assert files_of(begun) == before
    (tmp_path / "page.html").write_text("mine")
    asked = ("report", begun, "--examples", 0, "--output", tmp_path / "page.html")
    assert "Pass --force" in one_error(mope_command(*asked, code=2))
    assert (tmp_path / "page.html").read_text() == "mine"
    mope_command(*asked, "--force")
    mope_command("report", begun, "--examples", 0, "--output", begun / "own.html")
    assert yaml.safe_load((begun / "config.yaml").read_text())["report"]["output"] == "own.html"
    mope_command(*asked)  # it is ours now
    assert "output" not in yaml.safe_load((begun / "config.yaml").read_text())["report"]


def _file(folder: Path, content: dict[str, Any]) -> Path:
    (folder / "foreign.yaml").write_text(yaml.safe_dump(content))
    return folder / "foreign.yaml"


def test_only_one_command_works_in_a_folder(begun: Path) -> None:
    """Two threads here; two processes in the test of the lock."""
    answers: list[str] = []
    with RunFolder(begun, command="distill").held():
        thread = threading.Thread(target=lambda: answers.append(one_error(mope_command("prune", begun, code=1))))
        thread.start()
        thread.join()
    assert "is held by another thread of this process" in answers[0]
    mope_command("prune", begun)


def test_data_that_run_commands_or_lie_elsewhere_need_a_flag(tmp_path: Path, small: Path) -> None:
    """In a file they are refused, whatever it says; with the flag they go on working."""
    scenes = mope.emoji_scenes("train", 12)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number, (pixels, _) in enumerate(scenes):
        Image.fromarray(pixels).save(pictures / f"{number}.png")
    lines = [f"../pictures/{number}.png,{caption}" for number, (_, caption) in enumerate(scenes)]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "pairs.csv").write_text("filepath,title\n" + "\n".join(lines), encoding="latin-1")
    marker = tmp_path / "marker"
    score = {"model": str(small), "kind": ["head"], "data": f"pipe:touch {marker} #.tar"}
    foreign = _file(tmp_path, {"score": score})
    mope_command("run", foreign, tmp_path / "a", code=2)
    assert not marker.exists()
    mope_command("run", foreign, tmp_path / "a", "--allow-commands", code=2)  # no pairs come of it
    assert marker.exists()
    links = ("--data", tmp_path / "data" / "pairs.csv", "--calibration", 0.5, "--test", 0.2, "--encoding", "latin-1")
    command = ("score", tmp_path / "b", "--model", small, "--kind", "head", *links)
    mope_command(*command, code=2)
    mope_command(*command, "--follow-links")
    assert "follow_links" not in (tmp_path / "b" / "config.yaml").read_text()
    mope_command("evaluate", tmp_path / "b", "--no-latency", code=2)
    mope_command("evaluate", tmp_path / "b", "--no-latency", "--follow-links")
