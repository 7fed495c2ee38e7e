"""Written all or not at all, and shared on the Hub."""

import json
import os
import resource
import shutil
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from huggingface_hub import HfApi
from hypothesis import given
from hypothesis import strategies as st

import torch_pruning_mope as mope
from torch_pruning_mope import DualEncoder
from torch_pruning_mope._io import SAVING, is_plain
from torch_pruning_mope.checkpoint import _save, load
from torch_pruning_mope.errors import ModelLoadError

from .cases import CONFIG, clip_folder_at, prune, register


@pytest.fixture(scope="module")
def encoder() -> DualEncoder:
    return DualEncoder(mope.load_tiny_clip())


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def full(*_: Any, **__: Any) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("part", ["save_tensors", "sha256_of", "replace"])
def test_a_full_disk_leaves_what_was_there(
    part: str, encoder: DualEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "saved"
    encoder.save_pretrained(folder)
    (folder / "scores.json").write_text("{}")
    before = tree(tmp_path)
    other = DualEncoder(mope.load_tiny_clip())
    prune(other)
    if part == "replace":
        move = Path.replace

        def moves(self: Path, target: Path) -> Path:
            if self.name == "config.json" and self.parent.name == ".mope-saving":  # the last of all
                full()
            return move(self, target)

        monkeypatch.setattr(Path, "replace", moves)
    else:
        monkeypatch.setattr(_save, part, full)
    with pytest.raises(OSError, match="No space left"):
        other.save_pretrained(folder)
    with pytest.raises(OSError, match="No space left"):
        other.save_pretrained(tmp_path / "new" / "one")
    assert tree(tmp_path) == before
    assert not (tmp_path / "new").exists()
    monkeypatch.undo()
    DualEncoder.from_pretrained(folder)
    other.save_pretrained(folder)
    assert DualEncoder.from_pretrained(folder).removed == other.removed
    assert (folder / "scores.json").exists()


def test_a_full_disk_is_an_os_error(encoder: DualEncoder, tmp_path: Path) -> None:
    """As the system says it, in the middle of the weights; safetensors has an error of its own for it."""
    encoder.save_pretrained(tmp_path / "saved")
    before, limits = tree(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, limits[1]))
    try:
        with pytest.raises(OSError, match=r"model\.safetensors"):
            encoder.save_pretrained(tmp_path / "saved")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert tree(tmp_path) == before


def test_no_path_of_this_machine_is_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders and files as bases, of both libraries: names only."""
    small = {**CONFIG, "text_cfg": {**CONFIG["text_cfg"], "vocab_size": 60}}
    register(tmp_path, monkeypatch, **{"Small-8": small})
    model = open_clip.create_model("Small-8").eval()
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "open_clip_config.json").write_text(json.dumps({"model_cfg": small}))
    torch.save(model.state_dict(), plain / "model.bin")
    bases = [f"Small-8@{tmp_path}/weights.pt", str(plain), f"local-dir:{plain}", str(clip_folder_at(tmp_path / "clip"))]
    for place, base in enumerate(bases):
        folder = tmp_path / f"saved-{place}"
        DualEncoder(mope.load_model(base).model).save_pretrained(folder, base=base)
        texts = [path.read_text("utf-8", "replace") for path in folder.rglob("*") if path.is_file()]
        assert not any(str(tmp_path) in text for text in texts)
        assert json.loads((folder / "config.json").read_text())["base"]["name"] in {
            "Small-8@weights.pt",
            "plain",
            "clip",
        }


def test_a_link_under_the_name_of_the_working_folder_is_not_followed(encoder: DualEncoder, tmp_path: Path) -> None:
    victim, folder = tmp_path / "victim", tmp_path / "saved"
    encoder.save_pretrained(victim)
    before = tree(victim)
    encoder.save_pretrained(folder)
    (folder / SAVING).symlink_to(victim)
    assert DualEncoder.from_pretrained(folder).counts() == encoder.counts()
    encoder.save_pretrained(folder)
    assert tree(victim) == before
    assert not (folder / SAVING).exists()
    (folder / SAVING).mkdir()
    (folder / SAVING / ".old").symlink_to(victim)
    shutil.copy(folder / "config.json", folder / SAVING)
    encoder.save_pretrained(folder)
    assert tree(victim) == before


@pytest.mark.parametrize("card", ["größe".encode("latin-1"), None])
def test_a_card_that_is_no_text_stays(card: bytes | None, encoder: DualEncoder, tmp_path: Path) -> None:
    if card is None:
        os.mkfifo(tmp_path / "README.md")
    else:
        (tmp_path / "README.md").write_bytes(card)
    encoder.save_pretrained(tmp_path)
    assert DualEncoder.from_pretrained(tmp_path).counts() == encoder.counts()
    assert card is None or (tmp_path / "README.md").read_bytes() == card


def test_a_card_of_ones_own_stays(encoder: DualEncoder, tmp_path: Path) -> None:
    encoder.save_pretrained(tmp_path, metrics={"R@1": 1.0})
    encoder.save_pretrained(tmp_path, metrics={"R@1": 2.0})
    assert "| R@1 | 2 |" in (tmp_path / "README.md").read_text()
    (tmp_path / "README.md").write_text("mine")
    encoder.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_a_file_is_no_folder(encoder: DualEncoder, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="folder must be a folder, or nothing yet; found a file"):
        encoder.save_pretrained(tmp_path / "file")
    with pytest.raises(ModelLoadError, match="path_or_repo must be the folder of a checkpoint or a repository"):
        DualEncoder.from_pretrained(tmp_path / "file")
    with pytest.raises(ModelLoadError, match=r"a checkpoint must hold config.json; found none"):
        DualEncoder.from_pretrained(tmp_path)


def test_saving_over_the_checkpoint_in_use(encoder: DualEncoder, tmp_path: Path) -> None:
    encoder.save_pretrained(tmp_path)
    loaded = DualEncoder.from_pretrained(tmp_path)
    prune(loaded)
    images = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        expected = loaded.embed("image", images)
        loaded.save_pretrained(tmp_path)
        assert torch.equal(loaded.embed("image", images), expected)
        assert torch.equal(DualEncoder.from_pretrained(tmp_path).embed("image", images), expected)


def test_the_hubs_cache(encoder: DualEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files there are links out of the snapshot, to the repository's blobs."""
    encoder.save_pretrained(tmp_path / "saved")
    root = tmp_path / "hub" / "models--me--pruned"
    snapshot = root / "snapshots" / ("0" * 40)
    for folder in (root / "refs", root / "blobs", snapshot):
        folder.mkdir(parents=True)
    (root / "refs" / "main").write_text("0" * 40)
    for place, file in enumerate(sorted((tmp_path / "saved").iterdir())):
        shutil.move(file, root / "blobs" / str(place))
        (snapshot / file.name).symlink_to(os.path.relpath(root / "blobs" / str(place), snapshot))
    options: dict[str, Any] = {"cache_dir": tmp_path / "hub"}
    loaded = DualEncoder.from_pretrained("me/pruned", local_files_only=True, **options)
    assert loaded.counts() == encoder.counts()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert load("me/pruned", **options).model is not None
    assert mope.load_model("mope:me/pruned", **options).model is not None
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to("/etc/hostname")
    with pytest.raises(ModelLoadError, match=r"model.safetensors must lie inside of the checkpoint's folder"):
        load("me/pruned", **options)


def test_push_to_hub(encoder: DualEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def create(_self: HfApi, repo_id: str, **options: Any) -> Any:
        asked["create"] = options
        return type("Repository", (), {"repo_id": f"me/{repo_id}"})

    def upload(_self: HfApi, *, folder_path: str, **options: Any) -> str:
        shutil.copytree(folder_path, tmp_path / "uploaded")
        asked["upload"] = options
        return "https://hub/commit"

    monkeypatch.setattr(HfApi, "create_repo", create)
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    found = encoder.push_to_hub("pruned", private=True, branch="dev")
    assert found == "https://hub/commit"
    assert asked["create"] == {"private": True, "exist_ok": True}
    assert (asked["upload"]["repo_id"], asked["upload"]["revision"]) == ("me/pruned", "dev")
    assert sorted(path.name for path in (tmp_path / "uploaded").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    assert DualEncoder.from_pretrained(tmp_path / "uploaded").counts() == encoder.counts()


@given(st.text(max_size=12))
def test_plain_names_stay_in_their_folder(name: str) -> None:
    if is_plain(name):
        assert (Path("/a/b") / name).resolve().parent == Path("/a/b")
