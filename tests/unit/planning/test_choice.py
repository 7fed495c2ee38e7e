"""Ranges before scores, uniform widths, what is put back, and what a plan says of itself."""

import copy
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import torch_pruning_mope as mope
from tests.asserts import unchanged
from tests.unit import zoo
from tests.unit.models import clip
from torch_pruning_mope.cost import footprints, freed_multiply_adds, freed_parameters
from torch_pruning_mope.planning import Plan, make_plan, plan_range
from torch_pruning_mope.planning._budget import without
from torch_pruning_mope.planning._choose import _may_return
from torch_pruning_mope.planning._order import removal_order
from torch_pruning_mope.scoring import enumerate_units

from .test_plan import invented, total


def joint(encoder: mope.DualEncoder, seed: int = 0) -> mope.ScoreTable:
    """A table that says to be a joint path: rows by loss per parameter, an MLP's groups in their order."""
    table = invented(encoder, kinds=("head", "neurons"), seed=seed)
    steps = removal_order(table, lambda unit: freed_parameters(encoder, unit))
    return replace(table, scores=tuple(score for step in steps for score in step), settings={"interaction": "joint"})


@pytest.mark.parametrize("kinds", [("head",), ("head", "neurons", "block"), ("attention", "mlp")])
def test_the_range_is_what_plans_can_reach(encoder: mope.DualEncoder, kinds: Any) -> None:
    with unchanged(encoder.model):
        found = plan_range(encoder, kinds=kinds, groups=4)
    assert found.largest == footprints(encoder)
    table, least = invented(encoder, kinds=kinds), total(found.smallest)
    assert total(make_plan(encoder, table, parameters=least + 0.5).after) == least
    found.check(parameters=least + 0.5)
    for refuses in (found.check, lambda **budget: make_plan(encoder, table, **budget)):
        with pytest.raises(ValueError, match=re.escape(f"parameters of at least {least}, the least")):
            refuses(parameters=least - 0.5)
    assert f"{total(found.largest) / 1e6:.3f} (" in str(found)
    assert [line.split()[0] for line in str(found).splitlines()[1:]] == ["image", "text", "both"]


def test_ranges_know_minimums_and_time(encoder: mope.DualEncoder) -> None:
    seconds = iter([{"image": 2e-3, "text": 1e-3}, {"image": 1e-3, "text": 1e-3}])
    rules: dict[str, Any] = {"kinds": ("head",), "min_heads": 2, "towers": ("image",)}
    found = plan_range(encoder, latency=True, timer=lambda *_, **__: next(seconds), **rules)
    assert found.smallest["text"] == found.largest["text"]
    assert found.largest["image"].parameters - found.smallest["image"].parameters == 3 * 2 * 10 * (4 * 40 + 3)
    found.check(latency="70%")
    with pytest.raises(ValueError, match=r"latency of at least 66\.7%, the least .* found '60%' for latency"):
        found.check(latency="60%")
    with pytest.raises(ValueError, match="latency must have been measured; found none"):
        plan_range(encoder).check(latency="60%")
    with pytest.raises(ValueError, match=r"parameters of the text tower of at least 100%, the least"):
        found.check(parameters={"text": "90%"})


def widths(encoder: mope.DualEncoder, plan: Plan) -> list[tuple[str, int, int]]:
    """Tower, heads and neurons of each layer that a plan leaves."""
    smaller = mope.DualEncoder(copy.deepcopy(encoder.model))
    plan.apply(smaller)
    found = [
        (layer.tower, layer.block.attention.num_units, layer.block.feed_forward.num_units)  # type: ignore[union-attr]
        for layer in smaller.layers
    ]
    assert found == [(row.tower, row.heads_kept, row.neurons_kept) for row in plan.layers if not row.removed]
    return found


@pytest.mark.parametrize("interaction", ["nested", "joint"])
@pytest.mark.parametrize("budget", [{"parameters": {"image": "60%", "text": "70%"}}, {"multiply_adds": "60%"}])
def test_uniform_plans_keep_equal_widths(encoder: mope.DualEncoder, interaction: str, budget: Any) -> None:
    table = invented(encoder, kinds=("head", "neurons")) if interaction == "nested" else joint(encoder)
    plan = make_plan(encoder, table, uniform=True, **budget)
    free = make_plan(encoder, table, **budget)
    for tower in ("image", "text"):
        assert len({row for row in widths(encoder, plan) if row[0] == tower}) == 1
    assert len(set(widths(encoder, free))) > 2
    plan.apply(encoder)
    assert footprints(encoder) == plan.after


def test_uniform_plans_take_the_least_of_each_layer(encoder: mope.DualEncoder) -> None:
    table = invented(encoder, kinds=("head",))
    plan = make_plan(encoder, table, parameters={"image": "87%"}, uniform=True)
    for layer in range(3):
        gone = [unit for unit in plan.units if unit.layer == layer]
        ranked = sorted(table.of("head", "image", layer), key=lambda score: score.value)
        assert [score.unit for score in ranked[: len(gone)]] == gone
    with pytest.raises(ValueError, match="table must hold no whole attention or mlp for uniform=True"):
        make_plan(encoder, invented(encoder, kinds=("attention",)), parameters="90%", uniform=True)


@pytest.mark.parametrize(("seed", "kinds"), [(0, ("head", "neurons", "block")), (1, ("head", "neurons"))])
def test_nothing_that_fits_stays_out(encoder: mope.DualEncoder, seed: int, kinds: Any) -> None:
    table, most = invented(encoder, kinds=kinds, seed=seed), 0.6 * total(footprints(encoder))
    longer = make_plan(encoder, table, parameters=most, refill=False)
    plan = make_plan(encoder, table, parameters=most)
    assert set(plan.units) <= set(longer.units)
    assert total(longer.after) <= total(plan.after) <= most
    assert plan.settings["unused"] == [
        {"measure": "parameters", "towers": ["image", "text"], "amount": most - total(plan.after)}
    ]
    steps = [(score,) for score in table.scores if score.unit in plan.units]
    for step in steps:
        if _may_return(step, steps):
            rest = [unit for unit in plan.units if unit != step[0].unit]
            assert total(footprints(without(encoder, rest))) > most
    plan.apply(encoder)


@pytest.mark.parametrize("size", [4, 16])
def test_joint_paths_keep_their_order_in_chunks(encoder: mope.DualEncoder, size: int) -> None:
    table = joint(encoder)
    steps = removal_order(table, lambda unit: freed_parameters(encoder, unit), size)
    place = {
        c: i
        for i, s in enumerate(table.scores)
        for c in [(s.unit.tower, s.unit.layer, s.unit.part, n) for n in s.unit.channels]
    }
    last = [max(place[u.tower, u.layer, u.part, c] for c in u.channels) for u in (step[0].unit for step in steps)]
    assert last == sorted(last)  # a chunk goes where the last of its neurons would
    assert sum(len(step[0].unit.channels) for step in steps) == len(place)
    assert math.isclose(sum(step[0].value for step in steps), sum(score.value for score in table.scores))
    plan = make_plan(encoder, table, parameters="60%", round_to=size)
    before = [layer.block.feed_forward.num_units for layer in encoder.layers]  # type: ignore[union-attr]
    after = [neurons for _, _, neurons in widths(encoder, plan)]
    assert all(now % size == 0 or now == count for now, count in zip(after, before, strict=True))


@pytest.mark.parametrize("family", ["open_clip ViT", "SigLIP", "EVA02", "ConvNeXt", "transformers CLIP"])
def test_a_units_multiply_adds_are_what_goes_with_it(family: str) -> None:
    encoder = mope.DualEncoder(zoo.build(family))
    with unchanged(encoder.model):
        cost = freed_multiply_adds(encoder, footprints(encoder))
    units = enumerate_units(encoder, ("head", "neurons", "block"), {}, 4, ("image", "text"))
    before = total(footprints(encoder), "multiply_adds")
    for kind in ("head", "neurons", "block"):
        for tower in ("image", "text"):
            unit = next((u for u in units if (u.kind, u.tower) == (kind, tower)), None)
            if unit is not None:
                freed = before - total(footprints(without(encoder, [unit])), "multiply_adds")
                assert cost(unit) == pytest.approx(freed, rel=0.02), unit


def test_multiply_adds_are_weighed_where_they_are_the_budget(encoder: mope.DualEncoder) -> None:
    table = invented(encoder)
    by_macs, by_parameters = (make_plan(encoder, table, **{name: "60%"}) for name in ("multiply_adds", "parameters"))
    assert (by_macs.settings["loss_per"], by_parameters.settings["loss_per"]) == ("multiply_adds", "parameters")
    assert (
        by_macs.loss
        <= make_plan(
            encoder, table, parameters=total(by_macs.after), multiply_adds=total(by_macs.after, "multiply_adds") + 0.5
        ).loss
    )


def test_a_plan_says_why(encoder: mope.DualEncoder, tmp_path: Path) -> None:
    table = invented(encoder)
    plan = make_plan(encoder, table, parameters="50%")
    assert plan.loss == pytest.approx(sum(score.value for score in plan.scores))
    why = plan.why().splitlines()
    for place, score in enumerate(plan.scores, 1):
        assert score.parameters == freed_parameters(encoder, score.unit)
        if score.unit.kind != "block":  # of a block, the loss that its parts have not had before
            assert score.value == next(of.value for of in table.scores if of.unit == score.unit)
        assert why[place - 1].startswith(
            f"{place}. {score.unit}: loses {score.value:.3g} ± 0, frees {score.parameters:,}"
        )
    assert sum(row.loss for row in plan.layers) == pytest.approx(plan.loss)
    assert len(plan.layers) == 5
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    unknown = replace(plan, scores=(replace(plan.scores[0], stderr=math.nan), *plan.scores[1:]))
    unknown.save(tmp_path / "plan.json")
    assert json.loads((tmp_path / "plan.json").read_text())["scores"][0]["stderr"] is None
    assert math.isnan(Plan.load(tmp_path / "plan.json").scores[0].stderr)
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


def test_the_model_is_counted_once_for_each_choice(encoder: mope.DualEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    copies: list[Any] = []
    monkeypatch.setattr(
        "torch_pruning_mope.planning._budget.without",
        lambda of, units, **options: copies.append(units) or without(of, units, **options),
    )
    make_plan(encoder, invented(encoder, kinds=("head", "neurons")), parameters="60%", refill=False)
    assert len(set(copies)) == len(copies) <= 4  # of 54 units


def test_whole_models_of_stages_have_a_range() -> None:
    hub = mope.DualEncoder(zoo.build("ConvNeXt"))
    found = plan_range(hub, round_to=8, uniform=True)
    assert 0 < total(found.smallest) < total(found.largest)
    assert (
        plan_range(mope.DualEncoder(clip()), kinds=("block",)).smallest["image"].parameters
        < 0.6 * footprints(mope.DualEncoder(clip()))["image"].parameters
    )
