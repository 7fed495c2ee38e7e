"""Scoring that is stopped at any point, and goes on."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import torch_pruning_mope as mope
from tests.unit.models import clip, pairs_for
from torch_pruning_mope.scoring import Meter

ARGUMENTS: dict[str, Any] = {"groups": 3, "kinds": ("head", "neurons", "block"), "progress": False}


@pytest.fixture
def encoder() -> mope.DualEncoder:
    """Two layers and one."""
    return mope.DualEncoder(clip(vision={"layers": 2}, text={"layers": 1}))


class Stopped(Exception):
    """Stands for whatever may end a process."""


class Fuse(mope.metrics.ContrastiveLoss):
    """Burns out after so many evaluations of ablated models."""

    key = "fuse"

    def __init__(self, evaluations: int) -> None:
        super().__init__()
        self._left = evaluations

    def per_image(self, images: Tensor, texts: Tensor, image_index: Tensor) -> Tensor:
        if len(images) == len(texts) == 1 and self._left < 0:
            raise Stopped
        self._left -= 1
        return super().per_image(images, texts, image_index)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of evaluations of each run."""
    counts: list[int] = []
    begin = Meter.__init__
    measure = Meter._measure

    def counting_begin(self: Any, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **kwargs)
        counts.append(0)

    def counting(self: Any, *args: Any) -> Any:
        for position in measure(self, *args):
            counts[-1] += 1
            yield position

    monkeypatch.setattr(Meter, "__init__", counting_begin)
    monkeypatch.setattr(Meter, "_measure", counting)
    return counts


@pytest.mark.parametrize("interaction", ["nested", "greedy", "joint"])
def test_runs_that_break_off_add_up_to_one_that_does_not(
    tmp_path: Path, counted: list[int], interaction: Any, encoder: mope.DualEncoder, pairs: mope.Pairs
) -> None:
    options = {**ARGUMENTS, "interaction": interaction, "batch_size": len(pairs.images)}
    whole = mope.score(encoder, pairs, metric=Fuse(10**9), **options)
    needed = counted.pop()
    path, rng, runs = tmp_path / "table.json", random.Random(0), 0
    while not path.exists():
        runs += 1
        assert runs < 100
        try:
            table = mope.score(encoder, pairs, metric=Fuse(rng.randint(2, 9)), path=path, **options)
        except Stopped:
            assert not path.exists()
            assert list(tmp_path.glob("table.json.rank0.jsonl"))
    assert runs > 3
    assert table == whole
    assert mope.ScoreTable.load(path) == whole
    assert sum(counted) == needed  # nothing that was written down is done again
    assert [file.name for file in tmp_path.iterdir()] == ["table.json"]


def test_a_complete_table_is_read(
    tmp_path: Path, counted: list[int], encoder: mope.DualEncoder, pairs: mope.Pairs
) -> None:
    path = tmp_path / "new" / "folders" / "table.json"
    first = mope.score(encoder, pairs, path=path, **ARGUMENTS)
    evaluations = sum(counted)
    assert mope.score(encoder, pairs, path=path, **ARGUMENTS) == first
    assert sum(counted) == evaluations


@pytest.mark.parametrize(
    ("change", "differing"),
    [({"groups": 2}, "groups"), ({"metric": "recall@1"}, "metric"), ({"interaction": "single"}, "interaction")],
)
def test_another_table_is_not_overwritten(
    tmp_path: Path, encoder: mope.DualEncoder, pairs: mope.Pairs, change: dict[str, Any], differing: str
) -> None:
    path = tmp_path / "table.json"
    mope.score(encoder, pairs, path=path, **ARGUMENTS)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=rf"path must be free, or hold the table .* is for other {differing}"):
        mope.score(encoder, pairs, path=path, **(ARGUMENTS | change))
    assert path.read_bytes() == before


def break_off(encoder: mope.DualEncoder, pairs: mope.Pairs, path: Path, **options: Any) -> Path:
    """A journal of a run that stopped."""
    with pytest.raises(Stopped):
        mope.score(encoder, pairs, metric=Fuse(8), path=path, **(ARGUMENTS | {"batch_size": 12} | options))
    return path.with_name(f"{path.name}.rank0.jsonl")


def test_measurements_of_other_weights_are_refused(tmp_path: Path, pairs: mope.Pairs) -> None:
    journal = break_off(mope.DualEncoder(clip(seed=1)), pairs, tmp_path / "table.json")
    before = journal.read_bytes()
    with pytest.raises(mope.errors.WrongModelError, match=r"measurements of the same weights; found others in"):
        mope.score(mope.DualEncoder(clip(seed=2)), pairs, metric=Fuse(99), path=tmp_path / "table.json", **ARGUMENTS)
    assert journal.read_bytes() == before


def test_measurements_on_other_pairs_are_refused(tmp_path: Path, encoder: mope.DualEncoder) -> None:
    break_off(encoder, pairs_for(encoder.model, 9), tmp_path / "table.json")
    with pytest.raises(mope.errors.WrongModelError, match="measurements of the same pairs; found"):
        mope.score(encoder, pairs_for(encoder.model, 8), metric=Fuse(99), path=tmp_path / "table.json", **ARGUMENTS)


@pytest.mark.parametrize("cut", [1, 40])
def test_a_torn_line_is_measured_again(tmp_path: Path, encoder: mope.DualEncoder, pairs: mope.Pairs, cut: int) -> None:
    path = tmp_path / "table.json"
    journal = break_off(encoder, pairs, path, batch_size=len(pairs.images))
    journal.write_bytes(journal.read_bytes()[:-cut])
    whole = mope.score(encoder, pairs, metric=Fuse(10**9), **ARGUMENTS)
    assert mope.score(encoder, pairs, metric=Fuse(10**9), path=path, **ARGUMENTS) == whole


def test_journals_of_any_number_of_ranks_are_read(
    tmp_path: Path, counted: list[int], encoder: mope.DualEncoder, pairs: mope.Pairs
) -> None:
    """Two ranks have died, having measured half each; one process goes on."""
    path = tmp_path / "table.json"
    whole = mope.score(encoder, pairs, metric=Fuse(10**9), **ARGUMENTS)
    journal = break_off(encoder, pairs, path)
    head, *rest = [line for line in journal.read_text().splitlines() if line]
    measured = sum('"key"' in line for line in rest) - 1  # less the whole model
    for rank in (0, 5):
        lines = [head, *rest[: len(rest) // 2]] if rank else [head, *rest[len(rest) // 2 :]]
        path.with_name(f"{path.name}.rank{rank}.jsonl").write_text("\n".join(lines))
    counted.clear()
    assert mope.score(encoder, pairs, metric=Fuse(10**9), path=path, **ARGUMENTS) == whole
    assert sum(counted) == whole.settings["evaluations"] - measured
    assert [file.name for file in tmp_path.iterdir()] == ["table.json"]


def test_the_order_of_neurons_is_the_first_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = mope.DualEncoder(clip())
    pairs = pairs_for(encoder.model, 9)
    break_off(encoder, pairs, tmp_path / "table.json")
    monkeypatch.setattr("torch_pruning_mope.scoring._score.neuron_orders", lambda *_: pytest.fail("ordered again"))
    mope.score(encoder, pairs, metric=Fuse(10**9), path=tmp_path / "table.json", **ARGUMENTS)


def test_metrics_without_shares_are_written_too(tmp_path: Path, encoder: mope.DualEncoder, pairs: mope.Pairs) -> None:
    calls = 0

    def margin(images: Tensor, texts: Tensor) -> float:
        nonlocal calls
        calls += 1
        if calls == 9:
            raise Stopped
        return (images @ texts.T).diagonal().mean().item()

    margin.key = "margin"  # type: ignore[attr-defined]
    path = tmp_path / "table.json"
    with pytest.raises(Stopped):
        mope.score(encoder, pairs, metric=margin, path=path, **ARGUMENTS)
    resumed = mope.score(encoder, pairs, metric=margin, path=path, **ARGUMENTS)
    again = mope.score(encoder, pairs, metric=margin, **ARGUMENTS)
    assert [s.value for s in resumed.scores] == [s.value for s in again.scores]
    assert torch.tensor([s.stderr for s in resumed.scores]).isnan().all()


@pytest.mark.parametrize("edit", [b'"value": ', b'"shares": ['])
def test_edited_lines_are_measured_again(
    tmp_path: Path, counted: list[int], encoder: mope.DualEncoder, pairs: mope.Pairs, edit: bytes
) -> None:
    """Still JSON, but not what was written; and a header that is edited vouches for no line after it."""
    path, options = tmp_path / "table.json", ARGUMENTS | {"batch_size": 4}
    whole = mope.score(encoder, pairs, metric=Fuse(10**9), **options)
    journal = break_off(encoder, pairs, path, batch_size=4)
    head, *lines = [line for line in journal.read_bytes().splitlines() if line]
    assert len(lines) > 4
    edited = [line.replace(edit, edit + (b"1" if b"value" in edit else b"1, "), 1) for line in lines]
    assert sum(a != b for a, b in zip(lines, edited, strict=True)) > 3
    for content in ([head, *edited], [head.replace(b'"plain"', b'"prefix"') + b" ", *lines]):
        journal.write_bytes(b"\n".join(content))
        counted.clear()
        assert mope.score(encoder, pairs, metric=Fuse(10**9), path=path, **options) == whole
        assert sum(counted) == whole.settings["evaluations"]
        path.unlink()
