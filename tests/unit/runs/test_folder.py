"""The folder of a run: whose it is, and paths that survive a move."""

from pathlib import Path

import pytest
import yaml

from torch_pruning_mope.errors import WrongModelError
from torch_pruning_mope.runs import RunFolder, read_settings, shown

PAIRS = {"./pairs.csv": "run/pairs.csv", "../pairs.csv": "pairs.csv", "../../pairs.csv": "../pairs.csv"}


@pytest.mark.parametrize(("written", "place"), PAIRS.items())
def test_paths_near_a_run_move_with_it(
    written: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    file = (here / "runs" / place).resolve()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    monkeypatch.chdir(file.parent)
    RunFolder(here / "runs" / "run", command="score", settings={"data": file.name, "seed": 1}).claim({})
    kept = yaml.safe_load((here / "runs" / "run" / "config.yaml").read_text())
    assert kept["score"] == {"data": written, "seed": 1}
    monkeypatch.chdir(tmp_path)
    here.rename(tmp_path / "there")
    moved = tmp_path / "there" / file.relative_to(here)
    assert RunFolder(tmp_path / "there" / "runs" / "run").settings()["score"]["data"] == str(moved)


def test_what_is_far_is_absolute_and_names_stay_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "a" / "b" / "c" / "run"
    monkeypatch.chdir(tmp_path)
    for name in ("tiny", "ViT-B-32", "weights.pt", "pairs.csv", "000.tar"):
        (tmp_path / name).mkdir()
    for given, written in {
        "ViT-B-32": "ViT-B-32",
        "tiny": "tiny",
        "hf-hub:me/clip": "hf-hub:me/clip",
        "pipe:cat pairs.csv": "pipe:cat pairs.csv",
        "ViT-B-32@webli": "ViT-B-32@webli",
        "./ViT-B-32": f"{tmp_path}/ViT-B-32",
        "ViT-B-32@weights.pt": f"ViT-B-32@{tmp_path}/weights.pt",
        "{000..003}.tar": f"{tmp_path}/{{000..003}}.tar",
        "missing.csv": "missing.csv",
    }.items():
        folder = RunFolder(run, command="score", settings={"model": given})
        folder.record()
        assert yaml.safe_load((run / "config.yaml").read_text())["score"]["model"] == written
    near = RunFolder(tmp_path / "run", command="score", settings={"model": "ViT-B-32@weights.pt"})
    near.record()
    assert "ViT-B-32@../weights.pt" in (tmp_path / "run" / "config.yaml").read_text()
    assert near.settings()["score"]["model"] == f"ViT-B-32@{tmp_path}/weights.pt"
    assert shown(f"ViT-B-32@{tmp_path}/weights.pt") == "ViT-B-32@weights.pt"
    assert shown("hf-hub:me/clip") == "hf-hub:me/clip"


def test_a_folder_of_another_run_is_refused_and_keeps_its_settings(tmp_path: Path) -> None:
    own = RunFolder(tmp_path, command="score", settings={"seed": 1}, about={"data": "d"})
    own.claim({"weights": "w"})
    before = (tmp_path / "config.yaml").read_bytes()
    with pytest.raises(WrongModelError, match="has other data or division of them, weights"):
        RunFolder(tmp_path, command="score", settings={"seed": 2}, about={"data": "e"}).claim({"weights": "v"})
    assert (tmp_path / "config.yaml").read_bytes() == before
    RunFolder(tmp_path, command="plan", settings={"parameters": "50%"}).claim({"weights": "w"})
    assert list(RunFolder(tmp_path).settings()) == ["versions", "score", "plan"]
    (tmp_path / "run.json").write_text("[")
    with pytest.raises(ValueError, match=r"path must hold a run; .*run.json is damaged"):
        own.check({})


def test_settings_are_small_text(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    for content in (b"a: " + b"x" * (1 << 20), b"\xff", b"[" * 100_000, b"- score", b"score: [1]"):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"config must"):
            read_settings(file)
    file.write_text("distil: {batch-size: 2}")
    assert read_settings(file) == {"distill": {"batch_size": 2}}


def test_recording_again_changes_nothing_and_half_written_files_go(tmp_path: Path) -> None:
    own = RunFolder(tmp_path, command="pretrain-stage", settings={"split_seed": 1})
    own.record()
    before = (tmp_path / "config.yaml").read_bytes()
    for name in ("config.yaml.0123abcd.part", "kept.part"):
        (tmp_path / name).touch()
    with own.held():
        own.record()
    assert (tmp_path / "config.yaml").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "kept.part"]
