"""Files of every form, damaged and made up: they open and are read, or raise DataError, and nothing else.

``MOPE_FUZZ=10000 python -m pytest -n 0 tests/unit/data/test_fuzz.py`` tries as many of each.
"""

import io
import json
import tarfile
import tempfile
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.unit.fuzz import damaged, some
from torch_pruning_mope import gather_pairs, open_pairs
from torch_pruning_mope.data import open_labelled
from torch_pruning_mope.errors import DataError

from .files import picture, preprocess, write_images

NAMES = [
    "0.png",
    "1.png",
    "2.png",
    "sub/3.png",
    "../0.png",
    "/etc/passwd",
    "",
    " ",
    "\x00",
    "\ud800",
    "é" * 200,
    "a\\b.png",
    ".",
]
name = st.sampled_from(NAMES) | st.text(max_size=12)
text = st.sampled_from(["an owl", "", " ", "\ud800", '"', "a\tb", "a\nb", ",", "\ufffd"]) | st.text(max_size=12)
value = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("images")
    write_images(place, 3)
    write_images(place / "sub", 4)
    return place


def tokenizer(texts: Sequence[str]) -> Tensor:
    """As real ones do, it needs UTF-8."""
    return torch.tensor([[len(text.encode()), 0] for text in texts])


def read(folder: Path, name: str, content: bytes, **options: Any) -> None:
    with tempfile.TemporaryDirectory() as place, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source = Path(place) / name
        source.write_bytes(content)
        try:
            dataset = open_pairs(source, preprocess, tokenizer, max_skipped=1.0, **options)
            gather_pairs(dataset, progress=False)
            str(dataset.skipped).encode()
            for index in range(min(3, len(getattr(dataset, "entries", [])))):
                dataset[index]
        except DataError as error:
            str(error).encode()


@some
@given(data=st.data())
def test_tables(folder: Path, data: st.DataObject) -> None:
    separator = data.draw(st.sampled_from([",", "\t", ";"]))
    rows = data.draw(st.lists(st.tuples(name, text), max_size=5))
    lines = [("filepath", "title"), *rows]
    content = "\n".join(separator.join(row) for row in lines).encode(errors="surrogatepass")
    read(
        folder,
        "p.csv",
        damaged(data.draw, content),
        root=folder,
        separator=data.draw(st.sampled_from([None, separator])),
    )


@some
@given(data=st.data())
def test_lines_of_json(folder: Path, data: st.DataObject) -> None:
    row = st.fixed_dictionaries({"file_name": name | value, "text": text | value}) | value
    content = "\n".join(json.dumps(data.draw(row)) for _ in range(data.draw(st.integers(0, 5)))).encode()
    read(folder, "p.jsonl", damaged(data.draw, content), root=folder)


@some
@given(data=st.data())
def test_coco(folder: Path, data: st.DataObject) -> None:
    identity = st.integers(0, 3) | value
    images = st.lists(st.fixed_dictionaries({"id": identity, "file_name": name | value}) | value, max_size=5)
    notes = st.lists(st.fixed_dictionaries({"image_id": identity, "caption": text | value}) | value, max_size=5)
    content = {"images": data.draw(images | value), "annotations": data.draw(notes | value)}
    read(folder, "p.json", damaged(data.draw, json.dumps(content).encode()), root=folder)


@some
@given(data=st.data())
def test_karpathy(folder: Path, data: st.DataObject) -> None:
    sentences = st.lists(st.fixed_dictionaries({"raw": text | value}) | value, max_size=3) | value
    image = {"filename": name | value, "filepath": name | value, "split": text | value, "sentences": sentences}
    images = data.draw(st.lists(st.fixed_dictionaries({}, optional=image) | value, max_size=5))
    split = data.draw(st.sampled_from([None, "test", "an owl", "an owl+ "]))
    options = {"root": folder} if split is None else {"root": folder, "split": split}
    read(folder, "p.json", damaged(data.draw, json.dumps({"images": images}).encode()), **options)


def archive(draw: Any) -> bytes:
    file = io.BytesIO()
    form = draw(st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT]))
    contents = {
        "png": st.sampled_from([picture(1), picture(2)[:-20], b"no picture"]),
        "txt": text.map(lambda found: found.encode(errors="surrogatepass")),
        "json": value.map(lambda found: json.dumps({"caption": found}).encode()),
        "cls": st.sampled_from([b"0", b"1", b"7", b"-1", b"x", b"9" * 5000]),
        "bin": st.binary(max_size=4),
    }
    with tarfile.open(fileobj=file, mode=draw(st.sampled_from(["w", "w:gz"])), format=form) as found:
        for _ in range(draw(st.integers(0, 8))):
            suffix = draw(st.sampled_from(list(contents)))
            info = tarfile.TarInfo(f"{draw(st.sampled_from(['0', '1', '2', 'a/0', '__x__', 'é']))}.{suffix}")
            content = draw(contents[suffix])
            info.size = len(content)
            info.type = draw(
                st.sampled_from([tarfile.REGTYPE] * 6 + [tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE])
            )
            info.linkname = "/etc/passwd"
            found.addfile(info, io.BytesIO(content))
    return file.getvalue()


@some
@given(data=st.data())
def test_shards(folder: Path, data: st.DataObject) -> None:
    content = damaged(data.draw, archive(data.draw))
    read(folder, "0.tar", content)
    with tempfile.TemporaryDirectory() as place, warnings.catch_warnings(), suppress(DataError):
        warnings.simplefilter("ignore")
        (Path(place) / "0.tar").write_bytes(content)
        found = open_labelled(place, preprocess, classnames=["a", "b"], max_skipped=1.0)
        gather_pairs(found.dataset, progress=False)
