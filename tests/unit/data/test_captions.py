"""Captions on disk, as CSV and as COCO's JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from torch_pruning_mope.data import CaptionedImage, load_pairs, read_coco_captions, read_csv_captions


def preprocess(image: Image.Image) -> Tensor:
    assert image.mode == "RGB"
    return torch.tensor(image.getpixel((0, 0))).float()


def tokenizer(texts: Sequence[str]) -> Tensor:
    return torch.tensor([[len(text), 99] for text in texts])


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("separator", ["\t", ","])
@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_csv_rows_of_one_image_come_together(tmp_path: Path, separator: str, start: str) -> None:
    rows = [("filepath", "title"), ("a.png", "an owl"), ("sub/b.png", '"grapes, red"'), ("a.png", "a bird")]
    file = write(tmp_path / "pairs.csv", start + "\n".join(separator.join(row) for row in rows))
    assert read_csv_captions(file) == [
        CaptionedImage(tmp_path / "a.png", ("an owl", "a bird")),
        CaptionedImage(tmp_path / "sub/b.png", ("grapes, red",)),
    ]


def test_csv_columns_and_folder_can_be_named(tmp_path: Path) -> None:
    file = write(tmp_path / "pairs.csv", "id,url,text\n1,a.png,an owl\n2,/elsewhere/b.png,grapes\n")
    found = read_csv_captions(file, image_key="url", caption_key="text", folder="pictures")
    assert [entry.path for entry in found] == [Path("pictures/a.png"), Path("/elsewhere/b.png")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must name the columns filepath and title"),
        ("a.png,an owl\n", r"must name the columns filepath and title.*found \['a.png', 'an owl'\]"),
        ("filepath,title\n", "must list at least one image"),
        ("filepath,title\na.png,owl\nb.png\n", "line 3 does not"),
        ("filepath,title\na.png,\n", "line 2 does not"),
    ],
)
def test_bad_csv_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_csv_captions(write(tmp_path / "pairs.csv", text))


def test_coco_captions_go_to_their_images(tmp_path: Path) -> None:
    content = {
        "images": [{"id": 7, "file_name": "7.jpg"}, {"id": 3, "file_name": "3.jpg"}, {"id": 5, "file_name": "5.jpg"}],
        "annotations": [
            {"image_id": 3, "caption": "an owl"},
            {"image_id": 7, "caption": "grapes"},
            {"image_id": 3, "caption": "a bird"},
        ],
    }
    file = write(tmp_path / "captions.json", json.dumps(content))
    assert read_coco_captions(file, "val") == [
        CaptionedImage(Path("val/7.jpg"), ("grapes",)),
        CaptionedImage(Path("val/3.jpg"), ("an owl", "a bird")),
        CaptionedImage(Path("val/5.jpg"), ()),
    ]


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "{}",
        '{"images": [{"id": 1}], "annotations": []}',
        '{"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": [{"image_id": 2, "caption": "an owl"}]}',
    ],
)
def test_bad_coco_is_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(ValueError, match="must be COCO captions"):
        read_coco_captions(write(tmp_path / "captions.json", content), tmp_path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (2, 2), (1, 2, 3)).save(tmp_path / "a.png")
    Image.new("L", (2, 2), 9).save(tmp_path / "grey.png")
    write(tmp_path / "broken.png", "this is no picture")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) - 30])
    return tmp_path


def test_unreadable_images_are_reported_and_captions_stay_with_their_images(folder: Path) -> None:
    names = {
        "a.png": ("owl", "a bird"),
        "broken.png": ("x",),
        "missing.png": ("y",),
        "cut.png": ("z",),
        "grey.png": ("fog",),
    }
    entries = [CaptionedImage(folder / name, captions) for name, captions in names.items()]
    entries.append(CaptionedImage(folder / "a.png", ()))
    pairs, unusable = load_pairs(entries, preprocess, tokenizer, progress=False)
    assert pairs.images.tolist() == [[1, 2, 3], [9, 9, 9]]
    assert pairs.tokens[:, 0].tolist() == [3, 6, 3]
    assert pairs.image_index.tolist() == [0, 0, 1]
    assert [entry.path.name for entry in unusable] == ["broken.png", "missing.png", "cut.png", "a.png"]
    assert unusable[1].reason.startswith("FileNotFoundError")
    assert unusable[3].reason == "it has no caption"


def test_too_few_readable_images_are_refused(folder: Path) -> None:
    entries = [CaptionedImage(folder / name, ("x",)) for name in ("broken.png", "a.png")]
    with pytest.raises(ValueError, match=r"found 1 and 1 unusable \(first: .*broken.png"):
        load_pairs(entries, preprocess, tokenizer, progress=False)
