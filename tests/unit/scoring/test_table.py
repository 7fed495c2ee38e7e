"""Score tables outlive the process, whole or not at all, and only for their own weights."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn

import torch_pruning_mope as mope
from tests.asserts import unchanged
from tests.unit.models import clip
from torch_pruning_mope._fingerprint import fingerprint


@pytest.fixture
def table(encoder: mope.DualEncoder, pairs: mope.Pairs) -> mope.ScoreTable:
    return mope.score(encoder, pairs, kinds=("head", "neurons", "block"), groups=3, progress=False)


def test_round_trip(table: mope.ScoreTable, tmp_path: Path) -> None:
    table.save(tmp_path / "table.json")
    assert mope.ScoreTable.load(tmp_path / "table.json") == table
    assert mope.ScoreTable.load(str(tmp_path / "table.json")) == table
    assert [path.name for path in tmp_path.iterdir()] == ["table.json"]


def test_round_trip_without_standard_errors(encoder: mope.DualEncoder, pairs: mope.Pairs, tmp_path: Path) -> None:
    table = mope.score(encoder, pairs, metric=lambda i, t: float((i @ t.T).trace()), kinds=["head"], progress=False)
    table.save(tmp_path / "table.json")
    loaded = mope.ScoreTable.load(tmp_path / "table.json")
    assert [(s.unit, s.value, s.loss) for s in loaded.scores] == [(s.unit, s.value, s.loss) for s in table.scores]
    assert all(math.isnan(score.stderr) for score in loaded.scores)
    json.loads((tmp_path / "table.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_a_half_written_file_is_never_seen(
    table: mope.ScoreTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "table.json"
    table.save(path)
    whole = path.read_text()
    write = Path.write_bytes

    def interrupted(self: Path, data: bytes) -> int:
        write(self, data[: len(data) // 2])
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", interrupted)
    with pytest.raises(OSError, match="disk full"):
        table.save(path)
    with pytest.raises(OSError, match="disk full"):
        table.save(tmp_path / "new.json")
    assert path.read_text() == whole
    assert not (tmp_path / "new.json").exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: "null",
        lambda text: "{}",
        lambda text: text.replace('"format": 3', '"format": 99'),
        lambda text: text.replace('"stderr"', '"error"'),
        lambda text: text.replace('"dense"', '"sparse"'),
        lambda text: text.replace('"data": [', '"data": [3, '),
        lambda text: text.replace('"value": ', '"value": "x" , "other": ', 1),
    ],
)
def test_corrupt_files_are_refused(table: mope.ScoreTable, tmp_path: Path, damage: Any) -> None:
    path = tmp_path / "table.json"
    table.save(path)
    damaged = damage(path.read_text())
    assert damaged != path.read_text()
    path.write_text(damaged)
    with pytest.raises(ValueError, match=r"path must be a score table saved by this version; .*table\.json is not"):
        mope.ScoreTable.load(path)


def test_binary_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "table.json").write_bytes(b"\x80\x04\xff\x00")
    with pytest.raises(ValueError, match="path must be a score table"):
        mope.ScoreTable.load(tmp_path / "table.json")


def test_missing_files_are_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        mope.ScoreTable.load(tmp_path / "none.json")


def test_tables_know_their_weights(table: mope.ScoreTable, encoder: mope.DualEncoder) -> None:
    table.check_weights(encoder.model)
    other = clip(seed=1)
    mope.DualEncoder(other)
    with unchanged(other), pytest.raises(mope.errors.WrongModelError, match="table must be of the model's own weights"):
        table.check_weights(other)
    with torch.no_grad():
        encoder.model.visual.conv1.weight[0, 0, 0, 0] += 1e-6
    with pytest.raises(mope.errors.WrongModelError, match="Score this model"):
        table.check_weights(encoder.model)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.weight.data.add_(1e-7),
        lambda m: m.double(),
        lambda m: m.bias.data.neg_(),
        lambda m: m.register_buffer("extra", torch.zeros(1)),
        lambda m: setattr(m, "weight", nn.Parameter(m.weight.data.view(2, 6))),
    ],
)
def test_fingerprints_see_every_change(change: Any) -> None:
    torch.manual_seed(0)
    module = nn.Linear(3, 4)
    before = fingerprint(module)
    assert fingerprint(module) == before
    change(module)
    assert fingerprint(module) != before


def test_fingerprints_read_any_dtype() -> None:
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        assert len(fingerprint(nn.Linear(3, 3).to(dtype))) == 64
    assert len(fingerprint(nn.BatchNorm1d(3))) == 64  # a scalar buffer


def test_scores_by_kind_tower_and_layer(table: mope.ScoreTable) -> None:
    assert len(table.of("head")) == 18
    assert len(table.of("head", "image")) == 12
    assert [score.unit.index for score in table.of("head", "text", 0)] == [0, 1, 2]
    assert table.of("head", "text", 7) == []


def test_printing(table: mope.ScoreTable) -> None:
    lines = str(table).splitlines()
    assert lines[0].startswith(f"contrastive_loss = {table.dense:.4f} unpruned; {len(table.scores)} units")
    assert len(lines) == 1 + 3 * 5
    first = table.of("head", "image", 0)
    assert lines[1].split(":")[1].split("(")[0].split() == [f"{100 * score.value:.2f}" for score in first]
    assert str(first[0].unit) == "image layer 0 head 0"


def test_the_table_says_what_it_was_made_of(table: mope.ScoreTable, pairs: mope.Pairs) -> None:
    assert table.pairs == pairs.fingerprint()
    assert table.settings.items() >= {"groups": 3, "interaction": "nested", "rewire": "taylor"}.items()
    assert table.metric == "contrastive_loss"


def test_tables_of_parts_merge_into_the_whole(encoder: mope.DualEncoder, pairs: mope.Pairs) -> None:
    whole = mope.score(encoder, pairs, kinds=("head", "block"), progress=False)
    parts = [
        mope.score(encoder, pairs, kinds=(kind,), towers=(tower,), progress=False)
        for kind in ("head", "block")
        for tower in ("image", "text")
    ]
    merged = mope.ScoreTable.merge(*parts)
    assert set(merged.scores) == set(whole.scores)
    assert merged.settings == whole.settings
    assert (merged.dense, merged.weights, merged.pairs) == (whole.dense, whole.weights, whole.pairs)
    importance = mope.MoPEImportance(encoder, table=merged)
    assert importance.table is merged
    with pytest.raises(ValueError, match=r"tables must hold each unit once; found 18 units twice, such as \('head',"):
        mope.ScoreTable.merge(parts[0], parts[1], *parts[:2])
    with pytest.raises(ValueError, match="tables must be one table at least; found none"):
        mope.ScoreTable.merge()
    with pytest.raises(ValueError, match="tables must be of the same metric; found"):
        mope.ScoreTable.merge(parts[0], mope.score(encoder, pairs, metric="recall@1", kinds=("block",), progress=False))


def test_pandas_reads_them(table: mope.ScoreTable, tmp_path: Path) -> None:
    table.save(tmp_path / "table.json")
    table.save(tmp_path / "table.csv")
    frames = [pd.read_json(tmp_path / "table.json", orient="table"), pd.read_csv(tmp_path / "table.csv")]
    for frame in frames:
        assert frame["value"].tolist() == pytest.approx([score.value for score in table.scores], abs=1e-12)
        assert frame["layer"].tolist() == [score.unit.layer for score in table.scores]
        assert frame["images"].tolist() == [score.images for score in table.scores]
    assert frames[0]["channels"].tolist() == [list(score.unit.channels) for score in table.scores]
    assert frames[1]["channels"].fillna("").tolist()[0] == " ".join(map(str, table.scores[0].unit.channels))


def test_no_cell_of_csv_is_a_formula(table: mope.ScoreTable, tmp_path: Path) -> None:
    texts = ("=1+1", "+1", "-1", "@x", "\t=1", "head")
    scores = [replace(table.scores[0], unit=replace(table.scores[0].unit), value=-0.5) for _ in texts]
    for score, text in zip(scores, texts, strict=True):
        object.__setattr__(score.unit, "kind", text)  # as a file may say
    replace(table, scores=tuple(scores)).save(tmp_path / "table.csv")
    with (tmp_path / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["kind"] for row in rows] == ["'=1+1", "'+1", "'-1", "'@x", "'\t=1", "head"]
    assert {row["value"] for row in rows} == {"-0.5"}
