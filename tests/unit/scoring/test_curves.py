"""Nested scores against the min-max formula of isotonic regression."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.scoring.oracle import nested_scores
from torch_pruning_mope.scoring._families import isotonic_pools, pooled

NUMBERS = st.lists(
    st.one_of(st.integers(-3, 3).map(float), st.floats(-10, 10, allow_nan=False)), min_size=1, max_size=12
)


def min_max_fit(values: list[float]) -> list[float]:
    """Isotonic regression by its other definition: max over starts of min over ends of the mean between."""
    return [
        max(min(sum(values[i : j + 1]) / (j + 1 - i) for j in range(k, len(values))) for i in range(k + 1))
        for k in range(len(values))
    ]


@settings(max_examples=200, deadline=None)
@given(NUMBERS)
def test_scores_are_the_isotonic_fit_of_the_increments(losses: list[float]) -> None:
    increments = [after - before for before, after in zip([0.0, *losses], losses, strict=False)]
    found = nested_scores(torch.tensor(losses, dtype=torch.double))
    assert found.tolist() == pytest.approx(min_max_fit(increments), abs=1e-9)


@settings(max_examples=100, deadline=None)
@given(NUMBERS)
def test_scores_never_fall_and_sum_to_the_last_loss(losses: list[float]) -> None:
    found = nested_scores(torch.tensor(losses, dtype=torch.double))
    assert (found.diff() >= -1e-9).all()
    assert float(found.sum()) == pytest.approx(losses[-1], abs=1e-9)


def test_rising_increments_are_kept() -> None:
    assert nested_scores(torch.tensor([0.0, 1.0, 3.0, 6.0])).tolist() == [0.0, 1.0, 2.0, 3.0]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.floats(-10, 10), st.integers(1, 4)), min_size=1, max_size=6))
def test_a_unit_of_size_n_is_n_units_of_an_nth(path: list[tuple[float, int]]) -> None:
    values = torch.tensor([value for value, _ in path], dtype=torch.double)
    sizes = torch.tensor([size for _, size in path], dtype=torch.double)
    parts = torch.tensor([value / size for value, size in path for _ in range(size)], dtype=torch.double)
    expected = pooled(parts, isotonic_pools(parts)).split([size for _, size in path])
    found = pooled(values, isotonic_pools(values, sizes), sizes)
    assert found.tolist() == pytest.approx([float(part.sum()) for part in expected], abs=1e-9)


def test_pools_count_from_zero_and_ties_share_one() -> None:
    assert isotonic_pools(torch.tensor([1.0, 1.0, 3.0, 2.0, 5.0])).tolist() == [0, 0, 1, 1, 2]


def test_rows_are_averaged_over_their_pool() -> None:
    rows = torch.tensor([[0.0, 2.0], [4.0, 4.0], [7.0, 7.0]])
    assert pooled(rows, torch.tensor([0, 0, 1])).tolist() == [[2.0, 3.0], [2.0, 3.0], [7.0, 7.0]]
