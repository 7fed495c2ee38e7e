"""Two ranks with parts of a batch do what one does with all of it. One start of both for all that is compared."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import torch_pruning_mope as mope
from tests.asserts import assert_close, unchanged
from tests.unit.models import clip, pairs_for
from tests.unit.ranks import run_ranks
from torch_pruning_mope.distillation import TeacherCache, distill

from . import losses_in_ranks, training_in_ranks


def both(rank: int, out: Path) -> None:
    """All that is compared, in one of two processes."""
    dist.init_process_group("gloo", f"file://{out}/store", rank=rank, world_size=2, timeout=timedelta(seconds=240))
    torch.save(losses_in_ranks.run(rank) | training_in_ranks.main(rank, out), out / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_equal_one(tmp_path: Path) -> None:
    assert run_ranks(both, tmp_path) == [0, 0]
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    whole_chunks = chunks_of_one_rank()
    one = {case: training_in_ranks.run(**arguments) for case, arguments in training_in_ranks.CASES.items()}
    # The first rank's checkpoint of the run in shards, in one process.
    alone = training_in_ranks.run(path=tmp_path / "for one")
    kept = TeacherCache.of(training_in_ranks.teacher(), training_in_ranks.data())
    for found in ranks:
        check_losses(found)
        for name, gradient in whole_chunks.items():
            assert_close(found["chunked"][name], gradient, 1e-10)
        check_training(found, one, alone)
        check_caches(found["caches"], kept)
    shares = torch.stack([found["shares"] for found in ranks])
    assert shares.max() < 0.55
    assert_close(shares.sum(0), torch.ones(2), 0.01)  # single numbers are on both
    # Each shard of the folder that both see was computed once; of their own folders, by each.
    assert sum(found["caches"]["written"].count("teacher") for found in ranks) == 6
    assert [found["caches"]["written"].count(f"teacher of {rank}") for rank, found in enumerate(ranks)] == [6, 6]


def check_losses(found: dict[str, Any]) -> None:
    """Every loss, its gradients, and what all ranks raise."""
    for case, expected in losses_in_ranks.results(0, 1, list(losses_in_ranks.SPLITS)).items():
        assert found[case].keys() == expected.keys()
        for name, tensor in expected.items():
            if tensor.abs().max() == 0:  # L_feat does not see the temperature
                assert not found[case][name].any(), case
            else:
                assert_close(found[case][name], tensor, 1e-10)
    assert "images must have the same embedding size on all ranks; found [3, 4]" in found["widths"]
    assert "images must hold at least one embedding, on some rank; found none" in found["empty"]


def chunks_of_one_rank() -> dict[str, torch.Tensor]:
    """Rank r takes the first captions of its own part, so the whole batch is put together likewise."""
    first, second = (losses_in_ranks.Part(rank, 2, "even") for rank in range(2))
    student = losses_in_ranks.Student()
    images, texts = torch.cat([first.images, second.images]), torch.cat([first.texts[:3], second.texts[:3]])
    loss = losses_in_ranks.sigmoid(*student(images, texts))
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in student.named_parameters() if parameter.grad is not None}
    return {"loss": loss.detach(), **gradients}


def check_training(found: dict[str, Any], one: dict[str, Any], alone: dict[str, torch.Tensor]) -> None:
    """Shards equal data parallelism and one rank, also gone on, and where the other rank does not see the folder."""
    for case, expected in one.items():
        # In chunks, the temperature goes through the loss in float32.
        tolerance = 1e-6 if case == "in chunks" else 1e-9
        for how in ("whole", "in shards"):
            assert_close(found[f"{case}, {how}"]["losses"], expected["losses"], tolerance)
            assert_close(found[f"{case}, {how}"]["weights"], expected["weights"], tolerance)
    expected = found["all terms, in shards"]
    assert found["left as it was"]
    for name in ("weights", "losses"):
        assert torch.equal(found["gone on"][name], expected[name])
        assert torch.equal(found["by chance, gone on"][name], found["by chance"][name])
        for other in (found["gone on, whole"], alone):
            assert_close(other[name], expected[name], 1e-9)
    assert "has other seed. Choose another path" in found["other seed"]
    assert found["of each its own"].startswith("steps must be the same on all ranks; found [")
    assert_close(found["bf16"][True], found["bf16"][False], 1e-4)
    exact = distill(mope.DualEncoder(clip()), pairs_for(clip(), 16), steps=1, **training_in_ranks.QUICK)[0].loss
    assert exact != pytest.approx(float(found["bf16"][True][0]), rel=1e-5)


def check_caches(found: dict[str, Any], kept: TeacherCache) -> None:
    expected = kept.encoded(torch.arange(40), torch.arange(80)).texts
    for name in ("shared", "own"):
        assert_close(found[name], expected, 1e-12)
        assert found[f"{name}, files"] == [
            f"{tower}-{n:05d}.safetensors" for tower, count in (("image", 2), ("text", 4)) for n in range(count)
        ]


def test_shards_need_others() -> None:
    student = mope.DualEncoder(clip())
    with unchanged(student.model), pytest.raises(ValueError, match="shard must be False for one process"):
        distill(student, pairs_for(clip(), 8), steps=1, batch_size=4, shard=True, progress=False)
