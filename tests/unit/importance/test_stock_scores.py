"""Rivals of MoPE as score tables."""

import copy
from typing import Any

import pytest
import torch

import torch_pruning_mope as mope
from torch_pruning_mope import DualEncoder, Pairs, ScoreTable
from torch_pruning_mope.cost import freed_parameters
from torch_pruning_mope.importance import stock_scores
from torch_pruning_mope.importance._unit import unit_sublayers

from ...asserts import unchecked
from ..models import clip, pairs_for


@pytest.fixture(scope="module")
def encoder() -> DualEncoder:
    return DualEncoder(clip())


@pytest.fixture(scope="module")
def pairs(encoder: DualEncoder) -> Pairs:
    return pairs_for(encoder.model, 12, captions=1)


def importance(encoder: DualEncoder, pairs: Pairs, name: str) -> dict[Any, torch.Tensor]:
    """Sums of each channel's own weights: rows of the layers before it, its column of the layer behind."""
    model = DualEncoder(copy.deepcopy(encoder.model))
    if name != "l1":
        model.accumulate_gradients(pairs, squared=name == "hessian", progress=False)

    def of(parameter: torch.Tensor) -> torch.Tensor:
        weight, gradient = parameter.detach().double(), parameter.grad
        if name == "l1" or gradient is None:
            return weight.abs()
        return (weight * gradient).abs() if name == "taylor" else weight.square() * gradient

    found = {}
    for key, units, output in unit_sublayers(model):
        total = of(output.weight).sum(0)  # type: ignore[arg-type]
        for source in units.sources:
            total += of(source.weight).sum(1)
            if name != "l1" and source.bias is not None:
                total += of(source.bias)
        found[key] = total.view(-1, units.unit_size).sum(1)
    return found


@pytest.mark.parametrize("name", ["l1", "taylor", "hessian"])
def test_values_are_sums_over_a_units_weights(name: Any, encoder: DualEncoder, pairs: Pairs) -> None:
    before = copy.deepcopy(encoder.model.state_dict())
    table = stock_scores(encoder, pairs, name)
    expected = importance(encoder, pairs, name)
    assert len(table.scores) == sum(len(values) for values in expected.values())
    for score in table.scores:
        unit = score.unit
        size = len(unit.channels) if unit.kind == "head" else 1
        own = expected[unit.kind, unit.tower, unit.layer][unit.channels[0] // size]
        assert score.value == pytest.approx(float(own) / freed_parameters(encoder, unit), rel=1e-4)
        assert score.parameters == freed_parameters(encoder, unit)
    values = [score.value for score in table.scores]
    assert values == sorted(values)
    assert all(parameter.grad is None for parameter in encoder.model.parameters())
    assert all(torch.equal(tensor, encoder.model.state_dict()[key]) for key, tensor in before.items())


def test_random_is_its_seeds(encoder: DualEncoder, pairs: Pairs) -> None:
    orders = [[score.unit for score in stock_scores(encoder, pairs, "random", seed=seed).scores] for seed in (0, 0, 1)]
    assert orders[0] == orders[1]
    assert sorted(map(str, orders[0])) == sorted(map(str, orders[2]))
    assert orders[0] != orders[2]


@pytest.mark.parametrize("options", [{}, {"round_to": 8}, {"uniform": True}, {"min_heads": 1, "min_neurons": 4}])
def test_plans_cut_it_at_any_budget(options: Any, encoder: DualEncoder, pairs: Pairs) -> None:
    table = stock_scores(encoder, pairs, "l1")
    whole = sum(of.parameters for of in mope.cost.footprints(encoder).values())
    plan = mope.make_plan(encoder, table, parameters=int(0.8 * whole), **options)
    smaller = DualEncoder(copy.deepcopy(encoder.model))
    plan.apply(smaller)
    assert 0.7 * whole < sum(of.parameters for of in mope.cost.footprints(smaller).values()) <= 0.8 * whole


def test_it_is_kept_in_a_file(encoder: DualEncoder, pairs: Pairs, tmp_path: Any) -> None:
    table = stock_scores(encoder, pairs, "l1")
    table.save(tmp_path / "scores.json")
    loaded = ScoreTable.load(tmp_path / "scores.json")
    assert [(score.unit, score.value) for score in loaded.scores] == [
        (score.unit, score.value) for score in table.scores
    ]


def test_other_criteria_are_refused(encoder: DualEncoder, pairs: Pairs) -> None:
    with pytest.raises(ValueError, match="criterion must be one of l1, taylor, hessian, random; found 'fpgm'"):
        unchecked(stock_scores)(encoder, pairs, "fpgm")
