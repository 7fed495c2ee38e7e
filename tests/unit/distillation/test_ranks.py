"""Two ranks with parts of a batch have the loss and the gradients of one with all of it."""

from typing import Any

import pytest
import torch

from tests.asserts import assert_close

from . import losses_in_ranks as script
from .two_ranks import run_in_two


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What both ranks found."""
    out = tmp_path_factory.mktemp("ranks")
    run_in_two(script.__name__, out)
    return [torch.load(out / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("split", script.SPLITS)
@pytest.mark.parametrize("loss", script.losses())
def test_two_ranks_equal_one(ranks: list[dict[str, Any]], loss: str, split: str) -> None:
    expected = script.results(0, 1, [split])[f"{loss}, {split}"]
    for found in ranks:
        assert found[f"{loss}, {split}"].keys() == expected.keys()
        for name, tensor in expected.items():
            if tensor.abs().max() == 0:  # L_feat does not see the temperature
                assert not found[f"{loss}, {split}"][name].any()
            else:
                assert_close(found[f"{loss}, {split}"][name], tensor, 1e-10)


def test_chunks_under_ddp_equal_one_rank(ranks: list[dict[str, Any]]) -> None:
    # Rank r takes the first captions of its own part, so the whole batch is put together likewise.
    first, second = (script.Part(rank, 2, "even") for rank in range(2))
    student = script.Student()
    images, texts, scale, bias = student(
        torch.cat([first.images, second.images]), torch.cat([first.texts[:3], second.texts[:3]])
    )
    loss = script.SigmoidLoss()(images, texts, scale, bias)
    loss.backward()
    for found in ranks:
        assert_close(found["chunked"]["loss"], loss.detach(), 1e-10)
        for name, parameter in student.named_parameters():
            assert parameter.grad is not None
            assert_close(found["chunked"][name], parameter.grad, 1e-10)


def test_all_ranks_are_told_what_is_wrong(ranks: list[dict[str, Any]]) -> None:
    for found in ranks:
        assert "images must have the same embedding size on all ranks; found [3, 4]" in found["widths"]
        assert "images must hold at least one embedding, on some rank; found none" in found["empty"]
