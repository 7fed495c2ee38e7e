"""Pairs from where they are stored: every format, by the real loading code, and what happens to bad input."""

from __future__ import annotations

import copy
import json
import pickle
import sys
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, Subset

import torch_pruning_mope as mope
from torch_pruning_mope import gather_pairs, open_pairs, split_pairs
from torch_pruning_mope.data import ImagePairs, PairLoader, ShardedPairs
from torch_pruning_mope.errors import DataError

from .files import (
    CAPTIONS,
    COUNT,
    good_sample,
    opened,
    picture,
    preprocess,
    tokenizer,
    write,
    write_images,
    write_shard,
    write_shards,
)


def table(folder: Path, separator: str, name: str) -> Path:
    rows = [("filepath", "title"), *((f"images/{i}.png", text) for i in range(COUNT) for text in CAPTIONS[i])]
    return write(folder / name, "\ufeff" + "".join(separator.join(row) + "\n" for row in rows))


def coco(folder: Path) -> Path:
    notes = [{"image_id": 90 - i, "caption": text} for i in range(COUNT) for text in CAPTIONS[i]]
    images = [{"id": 90 - i, "file_name": f"images/{i}.png"} for i in range(COUNT)]
    return write(folder / "captions.json", {"images": images, "annotations": notes[::2] + notes[1::2]})


def karpathy(folder: Path, count: int = COUNT) -> Path:
    images = [
        {"filepath": "images", "filename": f"{i}.png", "split": "test", "sentences": [{"raw": t} for t in CAPTIONS[i]]}
        for i in range(count)
    ]
    other = {"filename": "none.png", "split": "train", "sentences": [{"raw": "9 9"}]}
    return write(folder / "dataset_coco.json", {"images": [*images, other], "dataset": "coco"})


def lines(folder: Path) -> Path:
    rows = [{"file_name": f"{i}.png", "text": CAPTIONS[i] if i % 2 else CAPTIONS[i][0]} for i in range(COUNT)]
    rows += [{"file_name": f"{i}.png", "text": CAPTIONS[i][1:]} for i in range(COUNT) if i % 2 == 0 and CAPTIONS[i][1:]]
    return write(folder / "images" / "metadata.jsonl", "\n".join(map(json.dumps, rows)))


def texts(folder: Path) -> Path:
    for i in range(COUNT):
        write(folder / "images" / f"{i}.txt", "\n".join(CAPTIONS[i]) + "\n\n")
    return folder / "images"


def shards(folder: Path) -> str:
    for shard in range(2):
        samples = {
            f"{i:03}": {"json": json.dumps({"caption": CAPTIONS[i]}).encode(), ("png", "webp")[i % 2]: picture(i)}
            for i in range(shard * 3, shard * 3 + 3)
        }
        write_shard(folder / f"pairs-{shard}.tar", samples)
    return str(folder / "pairs-{0..1}.tar")


FORMATS: dict[str, tuple[Callable[[Path], Any], dict[str, Any]]] = {
    "csv": (lambda folder: table(folder, ",", "pairs.csv"), {}),
    "tsv": (lambda folder: table(folder, "\t", "pairs.tsv"), {}),
    "csv with tabs": (lambda folder: str(table(folder, "\t", "pairs.csv")), {}),
    "csv with a separator": (lambda folder: table(folder, ";", "pairs.csv"), {"separator": ";"}),
    "lines": (lines, {}),
    "metadata in a folder": (lambda folder: lines(folder).parent, {}),
    "coco": (coco, {}),
    "karpathy": (karpathy, {"split": "test"}),
    "texts in a folder": (texts, {}),
    "shards": (shards, {}),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_images(tmp_path / "images")
    return tmp_path


@pytest.mark.parametrize(("form", "workers"), [*((form, 0) for form in FORMATS), ("csv", 2), ("shards", 2)])
def test_every_image_comes_once_with_all_its_captions(folder: Path, form: str, workers: int) -> None:
    make, options = FORMATS[form]
    dataset = opened(make(folder), **options)
    pairs = gather_pairs(dataset, batch_size=2, num_workers=workers, progress=False)
    if form != "shards" or not workers:  # workers take turns at shards
        assert pairs.images[:, 0].tolist() == list(range(COUNT))
    assert sorted(pairs.images[:, 0].tolist()) == list(range(COUNT))
    assert pairs.image_index.tolist() == sorted(pairs.image_index.tolist())
    described = zip(pairs.images[pairs.image_index][:, 0].tolist(), pairs.tokens.tolist(), strict=True)
    assert all(image == tokens[0] for image, tokens in described)
    assert sorted(pairs.tokens.tolist()) == [[i, j] for i in range(COUNT) for j in range(len(CAPTIONS[i]))]
    assert not dataset.skipped
    assert dataset.skipped.read == COUNT


@pytest.mark.parametrize(("form", "workers"), [("coco", 0), ("csv", 2), ("shards", 2)])
def test_items_are_images_with_one_caption(folder: Path, form: str, workers: int) -> None:
    make, options = FORMATS[form]
    dataset = opened(make(folder), **options)
    loader = PairLoader(dataset, batch_size=4, num_workers=workers)
    batches = list(loader)
    assert {tuple(images.shape[1:]) + tuple(tokens.shape[1:]) for images, tokens in batches} == {(3, 2)}
    images, tokens = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert sorted(images[:, 0].tolist()) == list(range(COUNT))
    assert images[:, 0].tolist() == tokens[:, 0].tolist()


def test_the_tiny_clip_reads_them(folder: Path) -> None:
    model = mope.load_model("tiny")
    write(folder / "words.csv", "filepath,title\nimages/0.png,a red apple\nimages/1.png,an owl on teal\n")
    dataset = open_pairs(folder / "words.csv", model.preprocess, model.tokenizer)
    pairs = gather_pairs(dataset, progress=False)
    assert pairs.images.shape == (2, 3, 64, 64)
    assert pairs.tokens.shape == (2, 24)


def test_captions_are_drawn_anew_each_epoch_in_running_workers_too(folder: Path) -> None:
    dataset = opened(coco(folder), seed=3)
    alone, loaded = [], []
    loader = DataLoader(dataset, batch_size=COUNT, num_workers=2, persistent_workers=True)
    for epoch in range(6):
        dataset.set_epoch(epoch)
        alone.append(torch.stack([dataset[i][1] for i in range(COUNT)]).tolist())
        loaded += [tokens.tolist() for _, tokens in loader]
    assert alone == loaded
    assert len({str(tokens) for tokens in alone}) > 2
    dataset = opened(coco(folder), captions="first")
    assert [dataset[i][1].tolist() for i in range(COUNT)] == [
        tokenizer(entry.captions)[0].tolist() for entry in dataset.entries
    ]


@pytest.mark.parametrize("workers", [0, 1])
def test_passes_of_a_loader_differ_and_come_again_in_another_run(folder: Path, workers: int) -> None:
    def passes(count: int, **options: Any) -> list[Any]:
        loader = PairLoader(opened(coco(folder)), batch_size=4, num_workers=workers, **options)
        return [[tokens.tolist() for _, tokens in loader] for _ in range(count)]

    first = passes(2, shuffle=True)
    torch.rand(7)
    assert first == passes(2, shuffle=True)
    assert first[0] != first[1]
    if workers:
        return  # what follows is the same in all processes
    ranks = [DistributedSampler(range(COUNT), 2, rank) for rank in range(2)]
    halves = [passes(2, sampler=rank) for rank in ranks]
    for epoch in range(2):
        assert sorted(image for half in halves for batch in half[epoch] for image, _ in batch) == list(range(COUNT))
    assert halves[0][0] != halves[0][1]


def test_root_and_columns_can_be_named(folder: Path) -> None:
    rows = f"id,url,text\n1,0.png,0 0\n2,{folder / 'images' / '1.png'},1 0\n3,../images/0.png,0 1\n4,./0.png,0 2\n"
    (folder / "tables").mkdir()
    source = write(folder / "tables" / "pairs.csv", rows)
    dataset = opened(source, image_key="url", caption_key="text", root=folder / "images")
    assert [entry.captions for entry in dataset.entries] == [("0 0", "0 2"), ("1 0",), ("0 1",)]
    assert dataset.files[0] == dataset.files[2] == (folder / "images" / "0.png").resolve()


# What cannot be read


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """Twenty images of which three cannot be read: one is text, one is cut off, one is missing."""
    write_images(tmp_path, 20)
    (tmp_path / "3.png").write_text("this is no picture")
    (tmp_path / "5.png").write_bytes(picture(5)[:-30])
    (tmp_path / "8.png").unlink()
    return write(tmp_path / "pairs.csv", "filepath,title\n" + "".join(f"{i}.png,{i} 0\n" for i in range(20)))


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_are_counted_once_and_others_take_their_place(broken: Path, workers: int) -> None:
    dataset = opened(broken, max_skipped=0.2)
    loader = PairLoader(dataset, batch_size=4, num_workers=workers)
    with pytest.warns(UserWarning, match="3 of 20 samples skipped.*file missing.*8.png"):
        first = torch.cat([tokens for _, tokens in loader])
    assert first.shape == (20, 2)
    assert not {3, 5, 8} & set(first[:, 0].tolist())
    skipped = dataset.skipped
    assert skipped.counts == {"file missing": 1, "image unreadable": 2}
    assert skipped.share == 0.15
    assert "3.png: none of AVIF, BMP" in str(skipped)
    with pytest.warns(UserWarning, match="3 of 20 samples skipped"):
        list(loader)  # the next pass counts for itself
    assert (dataset.epoch, dataset.skipped.counts) == (2, skipped.counts)


@pytest.mark.parametrize("workers", [0, 2])
def test_gathering_leaves_them_out(broken: Path, workers: int) -> None:
    with pytest.warns(UserWarning, match="pairs.csv: 3 of .* samples skipped"):
        pairs = gather_pairs(opened(broken, max_skipped=0.3), 10, batch_size=2, num_workers=workers, progress=False)
    assert pairs.images[:, 0].tolist() == [0, 1, 2, 4, 6, 7, 9, 10, 11, 12]
    assert pairs.tokens[:, 0].tolist() == [0, 1, 2, 4, 6, 7, 9, 10, 11, 12]


def test_too_many_are_an_error(broken: Path) -> None:
    with pytest.raises(DataError, match=r"at most 10.0% .* unreadable \(max_skipped\); found 3 of 9 samples"):
        gather_pairs(opened(broken), progress=False)
    with pytest.raises(DataError, match="found 3 of"):
        list(PairLoader(opened(broken), batch_size=4, num_workers=2))


def test_a_long_epoch_stops_early(tmp_path: Path) -> None:
    entries = [mope.data.CaptionedImage(f"{i}.png", (f"{i} 0",)) for i in range(500)]
    write_images(tmp_path, 2)
    dataset = ImagePairs(entries, preprocess, tokenizer, root=tmp_path)
    with pytest.raises(DataError, match="found 51 of 53 samples skipped: 51 × file missing"):
        gather_pairs(dataset, progress=False)


def test_what_fails_in_preprocess_is_raised_and_says_where(folder: Path) -> None:
    def fails(image: Image.Image) -> Tensor:
        raise RuntimeError("no such kernel")

    dataset = open_pairs(coco(folder), fails, tokenizer)
    with pytest.raises(RuntimeError, match="no such kernel") as caught:
        dataset[0]
    assert any("while preparing" in note and "0.png" in note for note in caught.value.__notes__)
    sizes = open_pairs(coco(folder), lambda image: torch.zeros(1 + image.getpixel((0, 0))[0]), tokenizer)
    with pytest.raises(DataError, match=r"preprocess must return images of one size; found \[1\] and \[2\]"):
        gather_pairs(sizes, progress=False)


def test_epochs_are_shared_on_the_way_to_workers_and_copies_count_for_themselves(broken: Path) -> None:
    dataset = opened(broken, max_skipped=1.0)
    sent = pickle.loads(ForkingPickler.dumps(dataset))  # as to a worker that is spawned
    dataset.set_epoch(4)
    assert sent.epoch == 4
    own = copy.deepcopy(dataset)
    with pytest.warns(UserWarning, match=r"3 of 1\d samples"):
        gather_pairs(own, 7, batch_size=1, num_workers=2, progress=False)
    own.set_epoch(5)
    assert (dataset.skipped.samples, dataset.epoch) == (0, 4)


def test_counts_come_home_from_workers_that_stay(broken: Path) -> None:
    loader = PairLoader(opened(broken, max_skipped=0.2), batch_size=4, num_workers=1, persistent_workers=True)
    for _ in range(2):
        with pytest.warns(UserWarning, match="3 of 20 samples skipped"):
            list(loader)


def test_other_loaders_of_the_same_settings_get_plain_batches(broken: Path) -> None:
    dataset = opened(broken, max_skipped=0.2)
    loader = PairLoader(dataset, batch_size=4, num_workers=1)
    batches = iter(loader)
    next(batches)
    plain = DataLoader(dataset, batch_size=4, collate_fn=loader.collate_fn)  # as Accelerate makes one
    assert [len(images) for images, _ in plain] == [4] * 5


ROWS = "".join(f"{i}.png,{i} 0\n" for i in range(6))


@pytest.mark.parametrize(
    ("row", "reason", "where"),
    [
        ("7.png\n", "entry malformed", "pairs.csv:8: not as many columns as the header"),
        ("7.png,7 0,8 0\n", "entry malformed", "pairs.csv:8: not as many"),
        ("7.png, \n", "caption missing", "pairs.csv:8: 7.png"),
        (",7 0\n", "entry malformed", "pairs.csv:8: no image file"),
        ("7.png,7 \ufffd\n", "entry malformed", "pairs.csv:8: not UTF-8"),
    ],
)
def test_bad_rows_are_counted_when_the_table_is_opened(folder: Path, row: str, reason: str, where: str) -> None:
    source = write(folder / "images" / "pairs.csv", "filepath,title\n" + ROWS + row)
    with pytest.warns(UserWarning, match="1 of 7 samples skipped"):
        dataset = opened(source, max_skipped=0.2)
    assert dataset.dropped.counts == {reason: 1}
    assert dataset.dropped.examples[reason][0].startswith(where)
    assert len(dataset) == 6
    with pytest.raises(DataError, match=r"at most 10.0%.*found 1 of 7 samples"):
        opened(source)


def test_an_open_quote_does_not_swallow_lines_in_silence(folder: Path) -> None:
    rows = ROWS.replace(",", "\t").replace("4.png\t", '4.png\t"')
    with pytest.warns(UserWarning, match="a quote that is not closed"):
        dataset = opened(write(folder / "images" / "p.tsv", "filepath\ttitle\n" + rows), max_skipped=0.2)
    assert len(dataset) == 4


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("p.csv", "", {}, r"must name the columns filepath and title .*, separated by ','; found \[\]"),
        ("p.csv", "a.png,an owl\n", {}, r"found \['a.png', 'an owl'\]\. Set image_key"),
        ("p.csv", "filepath;title\n", {"separator": "::"}, "must be a table; found otherwise"),
        ("p.csv", "filepath,title\n", {}, "must hold at least one image with a caption; found none"),
        (
            "p.csv",
            "filepath,title\nnone.png,an owl\n",
            {},
            "root must be the folder .*; found none of the first 1",
        ),
        (
            "p.csv",
            "filepath,title\n",
            {"shuffle": 9},
            "shuffle must be left out for table, as an option of shards; found 9",
        ),
        ("p.json", "{", {}, "must be JSON; found otherwise: .*line 1 column 2"),
        ("p.json", "[]", {}, "must be COCO captions .* or a Karpathy split .*; found a list"),
        ("p.json", {"pictures": []}, {}, r"found the keys \['pictures'\]"),
        ("p.json", {"images": [], "annotations": []}, {}, "must hold at least one image with a caption"),
        (
            "p.json",
            {"images": [], "annotations": []},
            {"split": "val"},
            "split must be left out for COCO.*; found 'val'",
        ),
        ("p.jsonl", '{"file": "a.png"}\n', {}, r"with file_name and text; found the keys \['file'\]"),
        ("p.jsonl", "{]\n", {}, r"with file_name and text; found the keys \[\]"),
        ("p.parquet", "", {}, "must be a file of .csv, .tsv, .jsonl, .json or .tar, .*Rename it"),
    ],
)
def test_bad_sources_are_refused(tmp_path: Path, name: str, content: object, options: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        opened(write(tmp_path / name, content), **options)


def test_sources_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a pattern or a URL; found nothing at '/no/such.csv'"):
        opened("/no/such.csv")
    write(tmp_path / "notes.md", "")
    with pytest.raises(DataError, match=r"must hold images .*; found \.md"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("images", "annotations", "where"),
    [
        ([{"id": 99}], [], "images[6]: no id and file_name"),
        ([], [{"image_id": 99, "caption": "9 9"}], "annotations[12]: image 99 is not among the images"),
        ([], [{"image_id": 90}], "annotations[12]: no image_id and caption"),
        ([{"id": 99, "file_name": "images/9.png"}], [], "images/9.png"),
    ],
)
def test_coco_entries_that_are_not_usable_are_counted(folder: Path, images: Any, annotations: Any, where: str) -> None:
    content = json.loads(coco(folder).read_text())
    write(
        folder / "x.json", {"images": content["images"] + images, "annotations": content["annotations"] + annotations}
    )
    with pytest.warns(UserWarning, match="1 of 7 samples skipped"):
        dataset = opened(folder / "x.json", max_skipped=0.2)
    assert [where] == [text for texts in dataset.dropped.examples.values() for text in texts]
    assert len(dataset) == COUNT


def test_karpathy_splits(folder: Path) -> None:
    source = karpathy(folder)
    with pytest.raises(DataError, match=r"split must be one of test, train of .*, or several joined by [+]; found val"):
        opened(source, split="test+val")
    assert len(opened(source, split="test")) == COUNT
    assert len(opened(source, split="test+train")) == len(opened(source)) == COUNT + 1
    content = json.loads(source.read_text())
    content["images"][1]["sentences"] = []
    content["images"][2] = {"split": "test", "sentences": [{"raw": "2 0"}]}
    with pytest.warns(UserWarning, match=r"1 × caption missing \(images\[1\].*1 × entry malformed \(images\[2\]"):
        assert len(opened(write(source, content), split="test", max_skipped=0.5)) == 4


def test_folders_say_which_images_lack_a_caption(folder: Path) -> None:
    images = texts(folder)
    (images / "1.txt").unlink()
    write(images / "2.txt", " \n")
    (images / "4.txt").write_bytes(b"\xff\xfe")
    write(images / "metadata.jsonl", '{"file_name": "2.png", "text": "2 0"}\n{"file_name": \n')
    with pytest.warns(UserWarning, match="metadata.jsonl:2"):
        dataset = opened(images, max_skipped=0.5)
    assert dataset.dropped.counts == {"caption missing": 1, "entry malformed": 2}
    assert "1.png" in dataset.dropped.examples["caption missing"][0]
    assert [entry.name for entry in dataset.entries] == ["0.png", "2.png", "3.png", "5.png"]


# Shards


def numbers_of(loader: Any) -> list[int]:
    return [int(number) for images, _ in loader for number in images[:, 0]]


def test_shards_are_told_by_pattern_glob_folder_list_and_url(tmp_path: Path) -> None:
    pattern = write_shards(tmp_path, 2, 3)
    paths = [str(tmp_path / "00.tar"), str(tmp_path / "01.tar")]
    sources = [
        pattern,
        str(tmp_path / "*.tar"),
        tmp_path,
        paths,
        "::".join(paths),
        f"file:{pattern}",
        f"pipe:cat {pattern}",
    ]
    for source in sources:
        dataset = opened(source, allow_commands=True)
        assert isinstance(dataset, ShardedPairs)
        assert [int(image[0]) for image, _ in dataset] == list(range(6)), source


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_and_ranks_share_shards_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    pattern, seen = write_shards(tmp_path, 5, 4), []
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        seen.append(numbers_of(PairLoader(opened(pattern, shuffle=6), batch_size=4, num_workers=workers)))
        assert len(gather_pairs(opened(pattern), num_workers=workers, progress=False).images) == 20
    assert sorted(seen[0] + seen[1]) == list(range(20))
    assert len(seen[0]) in {8, 12}


def test_shuffling_depends_on_seed_and_epoch_alone(tmp_path: Path) -> None:
    pattern = write_shards(tmp_path)

    def order(seed: int, epoch: int) -> list[int]:
        dataset = opened(pattern, shuffle=8, seed=seed)
        dataset.set_epoch(epoch)
        return numbers_of(DataLoader(dataset, batch_size=4))

    assert order(0, 0) == order(0, 0)
    assert sorted(order(0, 0)) == list(range(20))
    assert len({str(found) for found in (order(0, 0), order(0, 1), order(1, 0), list(range(20)))}) == 4


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_has_as_many_samples_as_asked(tmp_path: Path, workers: int) -> None:
    dataset = opened(write_shards(tmp_path), samples=51, shuffle=10)
    found = numbers_of(PairLoader(dataset, batch_size=8, num_workers=workers))
    assert len(found) == 51
    assert set(found) == set(range(20))


def test_more_ranks_than_shards_are_refused_where_each_needs_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pattern = write_shards(tmp_path, 1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert not numbers_of(PairLoader(opened(pattern), batch_size=2))
    with pytest.raises(DataError, match="shards with samples for every worker of every rank; found 1 shards for 2"):
        list(PairLoader(opened(pattern, samples=8), batch_size=2))


@pytest.fixture
def bad_shards(tmp_path: Path) -> Path:
    """Forty samples in good shards, six bad ones, and a shard that breaks off."""
    write_shards(tmp_path, 4, 10)
    bad: dict[str, dict[str, bytes]] = {
        "a": {"png": b"this is no picture", "txt": b"1 1"},
        "b": {"png": picture(1)[:-30], "txt": b"1 1"},
        "c": {"png": picture(1), "json": b'{"caption": '},
        "d": {"png": picture(1), "json": b'{"text": "1 1"}'},
        "e": {"png": picture(1), "txt": b" \n"},
        "f": {"txt": b"1 1"},
        "g": good_sample(40),
    }
    write_shard(tmp_path / "04.tar", bad)
    whole = write_shard(tmp_path / "05.tar", {"h": good_sample(41), "i": {"png": bytes(4000), "txt": b"1 1"}})
    whole.write_bytes(whole.read_bytes()[:4000])
    return tmp_path


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_samples_and_shards_are_counted(bad_shards: Path, workers: int) -> None:
    dataset = opened(bad_shards, max_skipped=0.3)
    with pytest.warns(UserWarning, match=r"6 of 48 samples and 1 of 6 shards skipped"):
        found = numbers_of(PairLoader(dataset, batch_size=4, num_workers=workers))
    assert sorted(found) == list(range(42))
    assert dataset.skipped.counts == {
        "image unreadable": 2,
        "image missing": 1,
        "caption missing": 2,
        "entry malformed": 1,
        "shard unreadable": 1,
    }
    assert "04.tar: d: has png, json" in dataset.skipped.examples["caption missing"][0]
    assert "05.tar: ReadError: unexpected end of data" in dataset.skipped.examples["shard unreadable"][0]
    with pytest.raises(DataError, match=r"at most 14.0% of its samples and of its shards unreadable"):
        gather_pairs(opened(bad_shards, max_skipped=0.14), num_workers=workers, progress=False)
    with pytest.raises(DataError, match=r"at most 12.0% of its samples"):  # a worker of another loader judges its own
        list(DataLoader(opened(bad_shards, max_skipped=0.12), num_workers=min(workers, 1)))


def test_shards_that_are_missing_or_of_no_bytes_are_found_at_once(tmp_path: Path) -> None:
    write_shards(tmp_path, 3)
    (tmp_path / "03.tar").touch()
    with pytest.warns(UserWarning, match="2 of 5 shards skipped.*03.tar: no bytes.*04.tar: no such file"):
        dataset = opened(str(tmp_path / "{00..04}.tar"), max_skipped=0.5)
    assert len(dataset.urls) == 3
    with pytest.raises(DataError, match=r"at most 10.0%.*found 2 of 5 shards skipped"):
        opened(str(tmp_path / "{00..04}.tar"))
    with pytest.raises(DataError, match="at least one shard with samples; found 1 that cannot be used"):
        opened(str(tmp_path / "03.tar"))


@pytest.mark.parametrize("options", [{}, {"samples": 5}])
@pytest.mark.parametrize("max_skipped", [0.1, 1.0])
def test_shards_without_samples_are_no_data(tmp_path: Path, options: Any, max_skipped: float) -> None:
    for number in range(2):
        write_shard(tmp_path / f"{number}.tar", {})
    message = "shards skipped: . × shard empty"
    with pytest.raises(DataError, match=message):
        list(PairLoader(opened(tmp_path, max_skipped=max_skipped, **options), batch_size=2))
    with pytest.raises(DataError, match=message):
        gather_pairs(opened(tmp_path, max_skipped=max_skipped, **options), progress=False)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("*.tar", "must be a pattern that fits shards; found none for"),
        ("{0..9.tar", "must be a pattern of shards; found .*: Unbalanced"),
        ("s3://bucket/0.tar", r"URLs must be of .*pipe.*; found 's3://bucket/0.tar'\. Use pipe: with a command"),
        ([], r"must be at least one shard with samples; found \[\]"),
    ],
)
def test_bad_patterns_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: Any, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=message):
        opened(source)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "samples must be at least 1; found 0"),
        ({"shuffle": -1}, "shuffle must be the size of a buffer"),
        ({"captions": "all"}, "captions must be one of random, first; found 'all'"),
        ({"max_skipped": 10.0}, r"max_skipped must be a share in \[0, 1\]; found 10"),
        ({"root": "."}, "root must be left out for shards"),
    ],
)
def test_bad_options_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: Any, message: str) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as users run it; else beartype speaks first
    with pytest.raises(ValueError, match=message):
        opened(write_shards(tmp_path, 1), **options)


def test_a_url_that_fails_is_counted(tmp_path: Path) -> None:
    source = [str(tmp_path / "00.tar"), f"pipe:cat {tmp_path}/none.tar 2>/dev/null"]
    write_shards(tmp_path, 1)
    with pytest.warns(UserWarning, match="1 of 2 shards skipped: 1 × shard unreadable"):
        assert len(list(opened(source, max_skipped=0.5, allow_commands=True))) == 5


def test_shards_need_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pattern = write_shards(tmp_path, 1)
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(DataError, match=r"shards need webdataset; .*pip install torch-pruning-mope\[webdataset\]"):
        opened(pattern)


# Parts


def names(dataset: ImagePairs) -> set[str]:
    return {entry.name for entry in dataset.entries}


def test_parts_share_no_image_and_depend_on_the_seed_alone(tmp_path: Path) -> None:
    write_images(tmp_path, 20)
    rows = [f"{i}.png,{i} {j}\n" for i in range(20) for j in range(2)]
    dataset = opened(write(tmp_path / "a.csv", "filepath,title\n" + "".join(rows)))
    turned = opened(write(tmp_path / "b.csv", "filepath,title\n" + "".join(rows[::-1])))
    parts = split_pairs(dataset, calibration=6, test=0.25, seed=1)
    assert [len(part) for part in (parts.calibration, parts.train, parts.test)] == [6, 9, 5]
    assert names(parts.calibration) | names(parts.train) | names(parts.test) == names(dataset)
    assert names(split_pairs(turned, calibration=6, test=0.25, seed=1).test) == names(parts.test)
    assert names(split_pairs(dataset, calibration=6, test=0.25, seed=2).test) != names(parts.test)
    pairs = gather_pairs(parts.calibration, progress=False)
    assert (pairs.num_images, pairs.num_captions) == (6, 12)
    assert (parts.calibration.skipped.read, parts.test.skipped.read, dataset.skipped.read) == (6, 0, 0)


def test_parts_of_shards_share_no_sample(tmp_path: Path) -> None:
    dataset = opened(write_shards(tmp_path, 4, 50))
    parts = split_pairs(dataset, calibration=0.2, test=0.3, seed=5)
    found = [{int(image[0]) for image, _ in part} for part in (parts.calibration, parts.train, parts.test)]
    assert set.union(*found) == set(range(200))
    assert sum(map(len, found)) == 200
    assert all(abs(len(part) - size) < 25 for part, size in zip(found, (40, 100, 60), strict=True))
    inner = split_pairs(parts.train, calibration=0.5, test=0, seed=6)
    assert {int(image[0]) for image, _ in inner.calibration} < found[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"calibration": -1}, "calibration must be a share below 1 or a whole number of images; found -1"),
        ({"test": 1.5}, "test must be a share below 1 or a whole number"),
        ({"calibration": 4, "test": 3}, "must be parts of the 6 images of .*; found 4 and 3"),
        ({"calibration": 0.01}, "found 0 and 1"),
    ],
)
def test_parts_that_there_are_not_are_refused(folder: Path, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split_pairs(opened(coco(folder)), **options)


def test_other_datasets_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(TypeError, match="must be a dataset of open_pairs; found Subset"):
        gather_pairs(Subset(opened(coco(folder)), [0, 1]))  # type: ignore[arg-type]


def test_shards_are_divided_by_shares(tmp_path: Path) -> None:
    dataset = opened(write_shards(tmp_path, 1))
    with pytest.raises(ValueError, match=r"must be shares of shards that sum to 1 at most; found 5 and 0.1"):
        split_pairs(dataset, calibration=5)
    with pytest.raises(ValueError, match="limit must be at least 2; found 1"):
        gather_pairs(dataset, 1)


@pytest.mark.parametrize("above", [False, True])
def test_lines_are_captions_in_clip_benchmarks_shards(tmp_path: Path, above: bool) -> None:
    (tmp_path / "test").mkdir()
    samples = {f"{i}": {"png": picture(i), "txt": f"{i} 0\n{i} 1\n".encode()} for i in range(3)}
    shard = write_shard(tmp_path / "test" / "0.tar", samples)
    (tmp_path / "dataset_type.txt" if above else tmp_path / "test" / "dataset_type.txt").write_text("retrieval\n")
    found = gather_pairs(open_pairs(shard, preprocess, tokenizer))
    assert found.tokens.tolist() == [[i, caption] for i in range(3) for caption in range(2)]
    assert found.image_index.tolist() == [0, 0, 1, 1, 2, 2]
