"""Budgets: how they are given, and what is counted."""

import pytest
import torch

from torch_pruning_mope.scoring._memory import free_memory, nbytes, peak_bytes, resolve_memory

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("given", "expected"),
    [(5, 5), ("5", 5), ("2K", 2048), ("1.5 MiB", 3 << 19), ("4GiB", 4 << 30), ("1gb", 1 << 30), ("1T", 1 << 40)],
)
def test_ways_to_state_a_budget(given: int | str, expected: int) -> None:
    assert resolve_memory(given, CPU) == expected


@pytest.mark.parametrize("given", [0, -1, True, "", "GiB", "4 apples", "-1G"])
def test_budgets_that_are_none(given: object) -> None:
    with pytest.raises(ValueError, match=r"memory must be a number of bytes or a text like '4GiB'; found"):
        resolve_memory(given, CPU)  # type: ignore[arg-type]


def test_by_default_half_of_what_is_free() -> None:
    assert 0.3 < resolve_memory(None, CPU) / free_memory(CPU) < 0.7
    assert free_memory(CPU) > 1 << 26


def test_bytes_of_tensors() -> None:
    assert nbytes(torch.zeros(3, 4), None, torch.zeros(2, dtype=torch.bool)) == 50


def test_the_peak_is_of_what_lives_at_the_same_time() -> None:
    x = torch.zeros(1000)

    def chain() -> torch.Tensor:
        y = x + 1  # one
        for _ in range(5):
            y = y * 2  # a second, while the first is read
        return y.view(10, 100)  # no memory of its own

    assert peak_bytes(chain, CPU) == 8000
    assert peak_bytes(lambda: x.add_(1), CPU) == 0
    assert peak_bytes(lambda: [x + i for i in range(7)], CPU) == 28000
