"""A student in parts learns what a whole one does, goes on where it stopped, and ends whole."""

from pathlib import Path
from typing import Any

import pytest
import torch

import torch_pruning_mope as mope
from tests.asserts import assert_close, unchanged
from tests.unit.models import clip, pairs_for
from torch_pruning_mope.distillation import distil

from . import shards_in_ranks as script
from .two_ranks import run_in_two


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where both ranks left what they found."""
    out = tmp_path_factory.mktemp("shards")
    world = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
    run_in_two(script.__name__, out, **world)
    return out


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Any]]:
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("case", script.CASES)
def test_shards_equal_data_parallelism_and_one_rank(ranks: list[dict[str, Any]], case: str) -> None:
    one = script.run(**script.CASES[case])
    # In chunks, the temperature goes through the loss in float32.
    tolerance = 1e-6 if case == "in chunks" else 1e-9
    for found in ranks:
        for how in ("whole", "in shards"):
            assert_close(found[f"{case}, {how}"]["losses"], one["losses"], tolerance)
            assert_close(found[f"{case}, {how}"]["weights"], one["weights"], tolerance)


def test_an_interrupted_run_goes_on_in_parts_or_whole(ranks: list[dict[str, Any]], folder: Path) -> None:
    alone = script.run(path=folder / "for one")
    for found in ranks:
        expected = found["all terms, in shards"]
        assert found["left as it was"]
        assert torch.equal(found["gone on"]["weights"], expected["weights"])
        assert torch.equal(found["gone on"]["losses"], expected["losses"])
        for other in (found["gone on, whole"], alone):
            assert_close(other["weights"], expected["weights"], 1e-9)
            assert_close(other["losses"], expected["losses"], 1e-9)


def test_every_rank_goes_on_with_its_own_chance(ranks: list[dict[str, Any]]) -> None:
    for found in ranks:
        assert torch.equal(found["by chance, gone on"]["losses"], found["by chance"]["losses"])
        assert torch.equal(found["by chance, gone on"]["weights"], found["by chance"]["weights"])


def test_a_rank_holds_its_part_alone(ranks: list[dict[str, Any]]) -> None:
    shares = torch.stack([found["shares"] for found in ranks])
    assert shares.max() < 0.55
    assert_close(shares.sum(0), torch.ones(2), 0.01)  # single numbers are on both


def test_half_precision_is_that_of_whole_ranks(ranks: list[dict[str, Any]]) -> None:
    for found in ranks:
        assert_close(found["bf16"][True], found["bf16"][False], 1e-4)
        exact = distil(mope.DualEncoder(clip()), pairs_for(clip(), 16), steps=1, **script.QUICK)[0].loss
        assert exact != pytest.approx(float(found["bf16"][True][0]), rel=1e-5)


def test_shards_need_others(monkeypatch: pytest.MonkeyPatch) -> None:
    student = mope.DualEncoder(clip())
    with unchanged(student.model), pytest.raises(ValueError, match="shard must be False for one process"):
        distil(student, pairs_for(clip(), 8), steps=1, batch_size=4, shard=True, progress=False)
