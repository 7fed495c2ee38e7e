"""A save that is killed, at any instant, leaves the old checkpoint or the new one."""

import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch

import torch_pruning_mope as mope
from torch_pruning_mope import DualEncoder
from torch_pruning_mope._io import SAVING, located
from torch_pruning_mope.errors import ModelLoadError

from .. import zoo
from .cases import CONFIG, prune, register

CHANGES = {"os.rename", "os.mkdir", "os.rmdir", "os.remove", "open"}
LOOK: list[Callable[[str], None] | None] = [None]


def audit(event: str, _: Any) -> None:
    """Python says what it is about to do to files; hooks stay for good, so this one can be idle."""
    if LOOK[0] is not None and event in CHANGES:
        look, LOOK[0] = LOOK[0], None
        look(event)
        LOOK[0] = look


@pytest.fixture(scope="module", autouse=True)
def hook() -> None:
    sys.addaudithook(audit)


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")
    }


@contextmanager
def filmed(folder: Path, film: Path) -> Iterator[list[Path]]:
    """Copies of a folder before each operation on files: what a kill at that instant would leave there."""
    seen: list[dict[str, bytes]] = []
    copies: list[Path] = []

    def look(_: str) -> None:
        found = tree(folder) if folder.exists() else {}
        if not seen or found != seen[-1]:
            seen.append(found)
            copies.append(film / f"{len(copies):03}" / "saved")
            if folder.exists():
                shutil.copytree(folder, copies[-1])

    LOOK[0] = look
    try:
        yield copies
    finally:
        LOOK[0] = None


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Encoders by name, and options to save them with; those of transformers have files of their base beside the weights."""
    small = {**CONFIG, "text_cfg": {**CONFIG["text_cfg"], "vocab_size": 60}}
    with pytest.MonkeyPatch.context() as patch:
        register(tmp_path_factory.mktemp("architectures"), patch, **{"Small-8": small})
        found: dict[str, Any] = {}
        for seed, name in enumerate(("first", "second", "third")):
            torch.manual_seed(seed)
            found[name] = DualEncoder(open_clip.create_model("Small-8").eval()), {"base": "Small-8"}
            if seed:
                prune(found[name][0])
        found["transformers"] = DualEncoder(zoo.build("transformers CLIP")), {}
        yield found


def save(models: dict[str, Any], name: str, folder: Path) -> None:
    encoder, options = models[name]
    encoder.save_pretrained(folder, **options)


def found(models: dict[str, Any], folder: Path) -> str:
    """Which of the models a folder holds, to the bit; ``none`` if it says that it holds none."""
    if not (folder / "config.json").exists() and not (folder / SAVING).exists():
        with pytest.raises(ModelLoadError):
            DualEncoder.from_pretrained(folder)
        return "none"
    state = DualEncoder.from_pretrained(folder).model.state_dict()

    def is_it(name: str) -> bool:
        own = models[name][0].model.state_dict()
        return own.keys() == state.keys() and all(torch.equal(tensor, state[key]) for key, tensor in own.items())

    (name,) = (name for name in models if is_it(name))
    return name


def view(folder: Path) -> dict[str, bytes]:
    """The files that loading reads, byte for byte."""
    base = located(folder, "base")
    paths = {name: located(folder, name) for name in ("config.json", "model.safetensors")}
    paths |= {f"base/{path.name}": path for path in (base.iterdir() if base.is_dir() else ())}
    return {name: path.read_bytes() for name, path in paths.items() if path.exists()}


@pytest.fixture(scope="module")
def views(models: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """What is read of each model once it has been saved, and where nothing has."""
    clean = tmp_path_factory.mktemp("views")
    for name in models:
        save(models, name, clean / name)
    return {"none": {}, **{name: view(clean / name) for name in models}}


def seen(views: dict[str, dict[str, bytes]], folder: Path) -> str:
    """Which of the models a folder holds, whole, by the bytes that loading reads."""
    own = view(folder)
    (name,) = (name for name, expected in views.items() if expected == own)
    return name


@pytest.mark.parametrize(("old", "new"), [("first", "transformers"), ("transformers", "first"), ("none", "first")])
def test_every_instant(
    old: str, new: str, models: dict[str, Any], views: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    folder = tmp_path / "saved"
    if old != "none":
        save(models, old, folder)
        (folder / "notes.txt").write_text("mine")
    with filmed(folder, tmp_path / "film") as copies:
        save(models, new, folder)
    assert found(models, folder) == new
    named = [seen(views, copy) for copy in copies]
    assert named == sorted(named, key=[old, new].index)  # the new one is there from one instant on
    changes = named.index(new)
    for place in (changes - 1, changes, len(copies) - 1):
        assert found(models, copies[place]) == named[place]
    assert len(copies) > 12
    assert min(named.count(old), named.count(new)) > 3
    save(models, "third", tmp_path / "clean")
    expected = tree(tmp_path / "clean") | ({} if old == "none" else {"notes.txt": b"mine"})
    for copy in [copy for copy in copies if (copy / SAVING).exists()][::5] + copies[::15]:
        save(models, "third", copy)
        assert tree(copy) == expected
    assert tree(folder).keys() >= {"config.json", "model.safetensors", "README.md"}
    assert not any(name.startswith(".") for name in tree(folder))


def test_a_kill_while_an_interrupted_save_is_finished(
    models: dict[str, Any], views: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    save(models, "transformers", tmp_path / "saved")
    with filmed(tmp_path / "saved", tmp_path / "film") as copies:
        save(models, "first", tmp_path / "saved")
    waiting = [copy for copy in copies if (copy / SAVING / "config.json").exists()]
    assert len(waiting) > 3
    for copy in (waiting[0], waiting[-1]):
        with filmed(copy, copy.parent / "film") as again:
            save(models, "second", copy)
        named = [seen(views, one) for one in again]
        assert named == sorted(named, key=["first", "second"].index)
        assert set(named) == {"first", "second"}


def test_an_error_while_things_move_undoes_it_and_a_kill_then_leaves_either(
    models: dict[str, Any], views: dict[str, dict[str, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "saved"
    save(models, "first", folder)
    (folder / "README.md").write_text("mine")
    before, move = tree(folder), Path.replace

    def moves(self: Path, target: Path) -> Path:
        if self == folder / SAVING / "config.json":
            raise OSError(28, "No space left on device")
        return move(self, target)

    monkeypatch.setattr(Path, "replace", moves)
    with filmed(folder, tmp_path / "film") as copies, pytest.raises(OSError, match="No space left"):
        save(models, "transformers", folder)
    assert tree(folder) == before
    named = [seen(views, copy) for copy in copies]
    assert named == [*["first"] * named.index("transformers"), *["transformers"] * named.count("transformers"),
                     *["first"] * (len(named) - named.index("transformers") - named.count("transformers"))]  # fmt: skip


def test_what_waits_is_looked_at_like_the_rest(models: dict[str, Any], tmp_path: Path) -> None:
    """Flipped bits, and links out of the folder."""
    save(models, "transformers", tmp_path / "saved")
    waits = tmp_path / "saved" / SAVING
    waits.mkdir()
    for name in ("base", "config.json", "model.safetensors"):
        (tmp_path / "saved" / name).rename(waits / name)
    assert found(models, tmp_path / "saved") == "transformers"
    for name in ("base/config.json", "config.json", "model.safetensors"):
        copy = tmp_path / name.replace("/", "-")
        shutil.copytree(tmp_path / "saved", copy)
        data = bytearray((copy / SAVING / name).read_bytes())
        data[len(data) // 2] ^= 4
        (copy / SAVING / name).write_bytes(data)
        with pytest.raises(ModelLoadError, match="must"):
            DualEncoder.from_pretrained(copy)
        (copy / SAVING / name).unlink()
        (copy / SAVING / name).symlink_to(waits / name)
        with pytest.raises(ModelLoadError, match="must lie inside of the checkpoint's folder"):
            DualEncoder.from_pretrained(copy)


def save_and_die(folder: Path, at: int) -> None:
    """Saves the tiny CLIP less a layer; the process ends before it renames for this time."""
    sys.addaudithook(audit)
    encoder = DualEncoder(mope.load_tiny_clip())
    encoder.remove_blocks("image", [0])
    done = 0

    def look(event: str) -> None:
        nonlocal done
        done += event == "os.rename"
        if done == at:
            os.kill(os.getpid(), signal.SIGKILL)

    LOOK[0] = look
    encoder.save_pretrained(folder)
    LOOK[0] = None


def test_real_kills(tmp_path: Path) -> None:
    dense = DualEncoder(mope.load_tiny_clip())
    dense.save_pretrained(tmp_path / "saved")
    context = multiprocessing.get_context("fork")
    removed = []
    for at in range(1, 20, 2):
        folder = tmp_path / str(at)
        shutil.copytree(tmp_path / "saved", folder)
        child = context.Process(target=save_and_die, args=(folder, at))
        child.start()
        child.join()
        removed.append(len(DualEncoder.from_pretrained(folder).image.blocks) < len(dense.image.blocks))
        if child.exitcode == 0:
            break
        assert child.exitcode == -signal.SIGKILL
    assert removed == sorted(removed)
    assert removed[0] is False
    assert removed[-1] is True
    assert len(removed) > 2
