"""Ridge regression from sums, against ``torch.linalg.lstsq`` on the rows themselves."""

import pytest
import torch
from torch import Tensor

from torch_pruning_mope._ridge import (
    Gram,
    best_ridge,
    inverse_positive,
    inverse_without,
    removal_cost,
    ridge_system,
    solve_positive,
    weights_without,
)

RIDGE = 1e-3


def _lstsq(h: Tensor, target: Tensor, prior: Tensor, ridge: float, *, bias: bool) -> Tensor:
    """The refit, with the penalty as further rows of the system."""
    weight = ridge * h.square().sum(0).mean()
    rows = torch.cat([h, torch.ones(len(h), 1)], 1) if bias else h
    left = torch.cat([rows, weight.sqrt() * torch.eye(rows.shape[1])])
    return torch.linalg.lstsq(left, torch.cat([target, weight.sqrt() * prior]), driver="gelsd").solution


@pytest.fixture(autouse=True)
def _double() -> object:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    ("case", "bias"),
    [("plenty", True), ("plenty", False), ("fewer rows than channels", True), ("copied channel", True),
     ("constant channel", True), ("no channel", True)],
)  # fmt: skip
def test_solution_is_that_of_the_stacked_system(case: str, bias: bool) -> None:
    h = torch.randn(5 if case.startswith("fewer") else 40, 0 if case == "no channel" else 7) + 0.5
    if case == "copied channel":
        h[:, 3] = h[:, 5]
    if case == "constant channel":
        h[:, 2] = 4.0
    target, prior = torch.randn(len(h), 3), torch.randn(h.shape[1] + bias, 3)
    rows = torch.cat([h, torch.ones(len(h), 1)], 1) if bias else h
    gram = Gram(h.shape[1], 3)
    residual = target - rows @ prior
    for part, left in zip(h.split(9), residual.split(9), strict=True):
        gram.add(part, left)
    change = gram.solve(RIDGE, bias=bias)
    expected = _lstsq(h, target, prior, RIDGE, bias=bias) if h.shape[1] else target.mean(0, keepdim=True)
    torch.testing.assert_close(prior + change, expected, rtol=0, atol=1e-10)
    assert gram.rows == len(h)
    assert float(gram.errors().sum()) == pytest.approx(float(residual.square().sum()))
    assert float(gram.errors(change).sum()) == pytest.approx(float((rows @ (prior + change) - target).square().sum()))


def test_singular_system_has_the_solution_of_least_norm() -> None:
    h = torch.randn(20, 3) @ torch.randn(3, 6)
    right = torch.randn(6, 2)
    found = solve_positive(h.mT @ h, h.mT @ h @ right)
    torch.testing.assert_close(found, torch.linalg.pinv(h) @ h @ right, rtol=1e-6, atol=1e-6)


def test_removal_is_the_refit_without_the_channels() -> None:
    h, weights, gone = torch.randn(50, 8), torch.randn(9, 4), [1, 4, 5]
    rows = torch.cat([h, torch.ones(50, 1)], 1)
    system = ridge_system(rows.mT @ rows, RIDGE)
    inverse = inverse_positive(system)
    kept = [row for row in range(9) if row not in gone]
    weight = RIDGE * h.square().sum(0).mean()
    left = torch.cat([rows[:, kept], weight.sqrt() * torch.eye(6)])
    right = torch.cat([rows @ weights, weight.sqrt() * weights[kept]])
    expected = torch.linalg.lstsq(left, right, driver="gelsd").solution
    found = weights_without(inverse, weights, gone)
    torch.testing.assert_close(found[kept], expected, rtol=0, atol=1e-10)
    assert not found[gone].any()
    # In two steps as in one, and at the cost that is told.
    first = weights_without(inverse, weights, gone[:1])
    torch.testing.assert_close(weights_without(inverse_without(inverse, gone[:1]), first, gone[1:]), found)
    penalised = (left @ expected - right).square().sum() + weight * weights[gone].square().sum()
    assert removal_cost(inverse, weights, gone) == pytest.approx(float(penalised))
    assert float(weights[4].square().sum() / inverse[4, 4]) == pytest.approx(removal_cost(inverse, weights, [4]))


def test_channel_that_the_others_make_costs_nothing() -> None:
    h = torch.randn(60, 6)
    h[:, 2] = h[:, 0] - 3 * h[:, 5]
    rows, weights = torch.cat([h, torch.ones(60, 1)], 1), torch.randn(7, 3)
    inverse = inverse_positive(ridge_system(rows.mT @ rows, 1e-10))
    found = weights_without(inverse, weights, [2])
    torch.testing.assert_close(rows @ found, rows @ weights, rtol=0, atol=1e-6)


def test_best_ridge_is_that_of_the_least_error_on_the_other_half() -> None:
    h, weights = torch.randn(24, 20), torch.randn(21, 3)
    target = torch.cat([h, torch.ones(24, 1)], 1) @ weights + 3 * torch.randn(24, 3)
    halves = Gram(20, 3), Gram(20, 3)
    for gram, rows in zip(halves, (slice(0, 12), slice(12, 24)), strict=True):
        gram.add(h[rows], target[rows])

    def error(ridge: float) -> float:
        pairs = (halves, halves[::-1])
        return sum(float(other.errors(own.solve(ridge)).sum()) for own, other in pairs)

    found = best_ridge(halves)
    assert found == min((10.0**power for power in range(-7, 1)), key=error)
    assert found > 1e-4
    exact = Gram(20, 3), Gram(20, 3)
    for gram, rows in zip(exact, (slice(0, 12), slice(12, 24)), strict=True):
        gram.add(h[rows, :4].repeat(1, 5), h[rows, :3])
    assert best_ridge(exact) == pytest.approx(1e-7)
    assert best_ridge((exact[0], Gram(20, 3)), start=0.01) == 0.01
