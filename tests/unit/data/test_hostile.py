"""Data that somebody else made: nothing runs, leaks, hangs or fills memory, and a bad sample is one skipped sample."""

import gzip
import io
import json
import os
import signal
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import webdataset
from PIL import Image

from torch_pruning_mope import gather_pairs
from torch_pruning_mope.data import CaptionedImage, ImagePairs, open_labelled
from torch_pruning_mope.errors import DataError

from .files import good_sample, opened, picture, preprocess, tokenizer, write, write_images, write_shard, write_shards

pytestmark = pytest.mark.filterwarnings("ignore:.* skipped:UserWarning")
DEEP = "[" * 100_000


@pytest.fixture(autouse=True)
def _in_time() -> Iterator[None]:
    """Ends a test that waits for a FIFO."""

    def ends(*_: object) -> None:
        raise KeyboardInterrupt  # no reader takes it for a broken file

    old = signal.signal(signal.SIGALRM, ends)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, old)


def skipped(dataset: Any) -> dict[str, int]:
    """Reads all that can be read, and returns how many entries and samples were skipped, by reason."""
    gather_pairs(dataset, progress=False)
    return {**dataset.dropped.counts, **dataset.skipped.counts}


# Commands


@pytest.mark.parametrize("scheme", sorted({*webdataset.gopen_schemes, "PIPE"} - {"__default__", "http", "https", "hf"}))
def test_urls_run_nothing_without_leave(tmp_path: Path, scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = tmp_path / "marker"
    command = tmp_path / "command"
    command.write_text(f"#!/bin/sh\ntouch {marker}\n")
    command.chmod(0o755)
    for name in ("curl", "gsutil", "ais"):
        (tmp_path / name).symlink_to(command)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    write_shards(tmp_path, 1)
    url = f"{scheme}:{command}" if scheme.lower() == "pipe" else f"{scheme}://host/0.tar"
    for source in (url, [str(tmp_path / "00.tar"), url], f"{tmp_path}/00.tar::{url}"):
        with pytest.raises(DataError, match="run a command, which needs allow_commands=True"):
            list(opened(source, max_skipped=1.0))
    assert not marker.exists()


@pytest.mark.parametrize("source", [".", "*.tar", "./*.tar", Path("pipe:touch marker #.tar"), [Path("*.tar")]])
def test_names_of_files_are_no_commands(tmp_path: Path, source: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_shard(tmp_path / "pipe:touch marker #.tar", {str(i): good_sample(i) for i in range(3)})
    assert not skipped(opened(source))
    assert not (tmp_path / "marker").exists()
    with pytest.raises(DataError, match="pass a Path to open a file of this name"):
        opened("pipe:touch marker #.tar")


# Files elsewhere


def private(folder: Path) -> Path:
    folder.mkdir()
    (folder / "secret.png").write_bytes(picture(99))
    (folder / "secret.txt").write_text("99 0")
    return folder


def linked(folder: Path, secret: Path) -> list[str]:
    (folder / "link.png").symlink_to(secret / "secret.png")
    (folder / "above").symlink_to(secret)
    return ["link.png", "../private/secret.png", str(secret / "secret.png"), "above/secret.png"]


def as_table(folder: Path, names: list[str]) -> Path:
    return write(folder / "p.csv", "filepath,title\n" + "".join(f"{name},{i} 0\n" for i, name in enumerate(names)))


def as_coco(folder: Path, names: list[str]) -> Path:
    images = [{"id": i, "file_name": name} for i, name in enumerate(names)]
    return write(
        folder / "p.json",
        {"images": images, "annotations": [{"image_id": i, "caption": f"{i} 0"} for i in range(len(names))]},
    )


def as_lines(folder: Path, names: list[str]) -> Path:
    rows = [json.dumps({"file_name": name, "text": f"{i} 0"}) for i, name in enumerate(names)]
    return write(folder / "p.jsonl", "\n".join(rows))


@pytest.mark.parametrize("form", [as_table, as_coco, as_lines])
def test_pictures_elsewhere_are_read_with_leave_alone(tmp_path: Path, form: Callable[[Path, list[str]], Path]) -> None:
    folder = tmp_path / "data"
    write_images(folder, 3)
    source = form(folder, ["0.png", "1.png", "./2.png", *linked(folder, private(tmp_path / "private"))])
    dataset = opened(source, max_skipped=1.0)
    assert skipped(dataset) == {"file outside": 4}
    assert "follow_links=True" in str(dataset.skipped)
    assert not skipped(opened(source, follow_links=True))
    with pytest.raises(DataError, match="follow_links=True"):
        skipped(opened(source))


def test_captions_elsewhere_are_read_with_leave_alone(tmp_path: Path) -> None:
    secret, folder = private(tmp_path / "private"), tmp_path / "data"
    write_images(folder, 4)
    linked(folder, secret)
    for i in range(3):
        write(folder / f"{i}.txt", f"{i} 0")
    (folder / "3.txt").symlink_to(secret / "secret.txt")
    (folder / "link.txt").symlink_to(secret / "secret.txt")
    dataset = opened(folder, max_skipped=1.0)
    assert [entry.name for entry in dataset.entries] == ["0.png", "1.png", "2.png"]
    assert skipped(dataset) == {"file outside": 3}  # two texts, and the folder
    assert len(opened(folder, follow_links=True)) == 6
    write(secret / "metadata.jsonl", '{"file_name": "0.png", "text": "99 0"}')
    (folder / "metadata.jsonl").symlink_to(secret / "metadata.jsonl")
    with pytest.raises(DataError, match=r"metadata.jsonl must be a file of its folder.*follow_links=True"):
        opened(folder, max_skipped=1.0)


def test_shards_elsewhere_are_read_with_leave_alone(tmp_path: Path) -> None:
    (tmp_path / "private").mkdir()
    write_shards(tmp_path / "private", 1)
    (tmp_path / "data").mkdir()
    write_shards(tmp_path / "data", 1)
    (tmp_path / "data" / "01.tar").symlink_to(tmp_path / "private" / "00.tar")
    for source in (tmp_path / "data", f"{tmp_path}/data/*.tar", f"{tmp_path}/data/0?.tar"):
        assert skipped(opened(source, max_skipped=1.0)) == {"shard unreadable": 1}
        assert not skipped(opened(source, follow_links=True))
    assert not skipped(opened(tmp_path / "data" / "01.tar"))  # named by the caller


def test_classes_elsewhere_are_read_with_leave_alone(tmp_path: Path) -> None:
    folder, secret = tmp_path / "data", private(tmp_path / "private")
    for name in ("a", "b"):
        write_images(folder / name, 2)
    (folder / "c").symlink_to(secret)
    (folder / "a" / "round").symlink_to(folder)
    with pytest.warns(UserWarning, match="2 × file outside .*follow_links=True"):
        found = open_labelled(folder, preprocess, max_skipped=0.5)
    assert len(found.dataset) == 4  # type: ignore[arg-type]
    found = open_labelled(folder, preprocess, follow_links=True)
    assert (len(found.dataset), found.classnames) == (5, ["a", "b", "c"])  # type: ignore[arg-type]
    (folder / "classnames.txt").symlink_to(secret / "secret.txt")
    with pytest.raises(DataError, match="classnames"):
        open_labelled(folder, preprocess, follow_links=True)


def test_snapshots_of_the_hub_link_to_their_blobs(tmp_path: Path) -> None:
    blobs, snapshot = (
        tmp_path / "datasets--a--b" / "blobs",
        tmp_path / "datasets--a--b" / "snapshots" / "abc" / "images",
    )
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for i in range(3):
        (blobs / f"hash{i}").write_bytes(picture(i))
        (snapshot / f"{i}.png").symlink_to(blobs / f"hash{i}")
    assert not skipped(opened(as_table(snapshot, ["0.png", "1.png", "2.png"])))


def test_data_elsewhere_altogether_is_told_at_once(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 3)
    (tmp_path / "tables").mkdir()
    source = as_table(tmp_path / "tables", [str(tmp_path / "images" / f"{i}.png") for i in range(3)])
    with pytest.raises(DataError, match=r"That one is outside: pass a folder above it as root, or follow_links=True"):
        opened(source)
    for options in ({"root": tmp_path / "images"}, {"root": "/"}, {"follow_links": True}):
        assert not skipped(opened(source, **options))


# Bombs and hangs


def test_fifos_are_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    write_images(tmp_path / "data", 3)
    os.mkfifo(tmp_path / "data" / "3.png")
    assert skipped(opened(as_table(tmp_path / "data", [f"{i}.png" for i in range(4)]), max_skipped=0.5)) == {
        "image unreadable": 1
    }
    for name in ("f.csv", "f.jsonl", "f.json", "f.tar"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(DataError, match="no regular file"):
            opened(tmp_path / name)
    for name in ("0.txt", "1.txt"):
        write(tmp_path / "data" / name, "0 0")
    os.mkfifo(tmp_path / "data" / "2.txt")
    assert skipped(opened(tmp_path / "data", max_skipped=0.5)) == {"entry malformed": 1, "caption missing": 1}
    write_images(tmp_path / "classes" / "a", 2)
    os.mkfifo(tmp_path / "classes" / "classnames.txt")
    with pytest.raises(DataError, match="no regular file"):
        open_labelled(tmp_path / "classes", preprocess)


def add(archive: tarfile.TarFile, name: str, content: bytes, **about: Any) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in about.items():
        setattr(info, key, value)
    archive.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize("name", ["1.bin", "2.png"])
def test_an_archive_unpacks_so_much_and_no_more(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch_pruning_mope.data._shards.MOST_BETWEEN", 2**20)
    with gzip.open(tmp_path / "0.tar.gz", "wb") as file, tarfile.open(fileobj=file, mode="w") as archive:
        for i in range(2):
            add(archive, f"{i}.png", picture(i))
            add(archive, f"{i}.txt", f"{i} 0".encode())
        add(archive, name, bytes(2**21))
        add(archive, "3.png", picture(3))
    dataset = opened(tmp_path / "0.tar.gz", max_skipped=1.0)
    assert skipped(dataset) == {"shard unreadable": 1}
    assert "more than 1048576 bytes in one file" in str(dataset.skipped)
    assert dataset.skipped.read == 2


def test_names_in_an_archive_have_a_bound(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        for i in range(2):
            add(archive, f"{i}.png", picture(i))
            add(archive, f"{i}.txt", f"{i} 0".encode())
        add(archive, "x", bytes(2**21), type=tarfile.GNUTYPE_LONGNAME)
    assert skipped(opened(tmp_path / "0.tar", max_skipped=1.0)) == {"shard unreadable": 1}


def test_long_pictures_are_skipped(tmp_path: Path) -> None:
    write_images(tmp_path, 2)
    Image.new("1", (1, 6000)).save(tmp_path / "2.png")
    assert skipped(opened(as_table(tmp_path, ["0.png", "1.png", "2.png"]), max_skipped=0.5)) == {"image unreadable": 1}


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    write_images(tmp_path, 2)
    for i in range(2):
        write(tmp_path / f"{i}.txt", "0 0")
        (tmp_path / f"folder{i}").symlink_to(tmp_path)
    assert len(opened(tmp_path, follow_links=True)) == 2


# Bad samples


BAD_NAMES = ["\ud800.png", "x" * 300 + ".png", "a\0b.png", "\x1b[31m.png", "a\\b.png"]


@pytest.mark.parametrize("form", [as_table, as_coco, as_lines])
@pytest.mark.parametrize("bad", BAD_NAMES)
def test_a_bad_name_is_one_skipped_image(tmp_path: Path, form: Callable[[Path, list[str]], Path], bad: str) -> None:
    if form is as_table and bad == BAD_NAMES[0]:
        return  # a table has no way to write it
    write_images(tmp_path, 3)
    dataset = opened(form(tmp_path, [bad, "0.png", "1.png", "2.png"]), max_skipped=0.5)
    assert sum(skipped(dataset).values()) == 1
    assert str(dataset.skipped).isprintable()


def test_backslashes_are_told(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 2)
    with pytest.raises(DataError, match=r"images\\0.png\)\. A backslash does not separate folders here"):
        opened(as_table(tmp_path, ["images\\0.png", "images\\1.png"]))
    dataset = opened(as_table(tmp_path, ["images/0.png", "images/1.png", "images\\1.png"]), max_skipped=0.5)
    assert skipped(dataset) == {"file missing": 1}
    assert "write its folders with /" in str(dataset.skipped)


def test_deep_json_is_one_skipped_sample_or_one_error(tmp_path: Path) -> None:
    write_images(tmp_path, 3)
    lines = as_lines(tmp_path, ["0.png", "1.png"])
    lines.write_text(lines.read_text() + f"\n{DEEP}")
    assert skipped(opened(lines, max_skipped=0.5)) == {"entry malformed": 1}
    with pytest.raises(DataError, match=r"must be JSON; found otherwise: nested too deeply"):
        opened(write(tmp_path / "deep.json", DEEP))
    bad = {"png": picture(3), "json": DEEP.encode()}
    write_shard(tmp_path / "0.tar", {**{str(i): good_sample(i) for i in range(3)}, "3": bad})
    assert skipped(opened(tmp_path / "0.tar", max_skipped=0.5)) == {"entry malformed": 1}


def test_splits_are_shown_without_effect(tmp_path: Path) -> None:
    content = {"images": [{"filename": "0.png", "split": "\ud800\x1b[31m", "sentences": []}]}
    with pytest.raises(DataError, match=r"split must be one of \\ud800\\x1b\[31m of") as caught:
        opened(write(tmp_path / "p.json", content), split="test")
    assert str(caught.value).isprintable()


def test_captions_without_utf_8_are_none(tmp_path: Path) -> None:
    write_images(tmp_path, 3)
    rows = [json.dumps({"file_name": f"{i}.png", "text": text}) for i, text in enumerate(["0 0", "1 0", "2 \udfff"])]
    assert skipped(opened(write(tmp_path / "p.jsonl", "\n".join(rows)), max_skipped=0.5)) == {"caption missing": 1}
    samples = {str(i): good_sample(i) for i in range(3)}
    samples["2"] = {"png": picture(2), "json": rb'{"caption": "2 \ud800"}'}
    samples["3"] = {"png": picture(2), "txt": b"3 " + b"0" * 2**20}
    write_shard(tmp_path / "0.tar", samples)
    assert skipped(opened(tmp_path / "0.tar", max_skipped=0.9)) == {"caption missing": 1, "entry malformed": 1}


def test_tables_and_texts_have_an_encoding(tmp_path: Path) -> None:
    write_images(tmp_path, 3)
    rows = "filepath,title\n0.png,un café\n1.png,a cup\n2.png,a mug\n"
    (tmp_path / "p.csv").write_bytes(rows.encode("latin-1"))
    with pytest.warns(UserWarning, match="p.csv:2: not UTF-8; pass encoding"):
        opened(tmp_path / "p.csv", max_skipped=0.5)
    for encoding in ("latin-1", "cp1252"):
        assert opened(tmp_path / "p.csv", encoding=encoding).entries[0].captions == ("un café",)
    (tmp_path / "p.csv").write_bytes(rows.encode("utf-8-sig"))
    assert opened(tmp_path / "p.csv", encoding="utf-8").entries[0].captions == ("un café",)
    (tmp_path / "0.txt").write_bytes("un café".encode("utf-16"))
    (tmp_path / "1.txt").write_bytes("a cup".encode("utf-16"))
    (tmp_path / "2.txt").write_bytes("a mug".encode("utf-16"))
    assert opened(tmp_path, encoding="utf-16").entries[0].captions == ("un café",)
    for encoding in ("klingon", "base64"):
        with pytest.raises(DataError, match=f"encoding must be .*; found '{encoding}'"):
            opened(tmp_path / "p.csv", encoding=encoding)
    (tmp_path / "a").mkdir()
    (tmp_path / "names.txt").write_bytes("café\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"must be in utf-8; found other bytes in .*names.txt. Pass encoding"):
        open_labelled(tmp_path, preprocess, classnames=tmp_path / "names.txt")


def test_entries_of_ones_own_are_held_to_their_root(tmp_path: Path) -> None:
    write_images(tmp_path / "data", 2)
    entries = [CaptionedImage(name, ("0 0",)) for name in ("0.png", "1.png", "../other.png")]
    (tmp_path / "other.png").write_bytes(picture(3))
    assert skipped(ImagePairs(entries, preprocess, tokenizer, root=tmp_path / "data", max_skipped=1.0)) == {
        "file outside": 1
    }
