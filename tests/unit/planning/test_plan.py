"""Plans: budgets hold, no more goes than must, and what is removed is what was planned."""

import copy
import json
import random
import re
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import torch_pruning_mope as mope
from tests.asserts import assert_close, assert_trains, unchanged
from tests.unit import zoo
from tests.unit.models import clip, pairs_for
from torch_pruning_mope.cost import footprints, freed_parameters, latencies
from torch_pruning_mope.planning import parse_amount
from torch_pruning_mope.planning._budget import in_unit_of
from torch_pruning_mope.planning._order import removal_order
from torch_pruning_mope.scoring import Ablation, PlainEngine, enumerate_units, single_ablation

KINDS = ("head", "neurons", "block")
ENCODER = mope.DualEncoder(clip())
"""For examples that leave it as it is."""


def invented(encoder: mope.DualEncoder, *, kinds: Any = KINDS, groups: int = 4, seed: int = 0) -> mope.ScoreTable:
    """A table of random losses, for any model, with or without weights."""
    rng = random.Random(seed)
    units = enumerate_units(encoder, kinds, {}, groups, ("image", "text"))
    scores = tuple(mope.scoring.Score(unit, value := rng.random(), 0.0, value) for unit in units)
    meta = any(parameter.is_meta for parameter in encoder.model.parameters())
    weights = "" if meta else mope.scoring.fingerprint(encoder.model)
    return mope.ScoreTable(scores, 1.0, "invented", weights, "")


def total(sizes: Any, measure: str = "parameters") -> int:
    return sum(getattr(size, measure) for size in sizes.values())


@pytest.mark.parametrize(
    ("kinds", "budget"),
    [
        (KINDS, {"parameters": "60%"}),
        (KINDS, {"multiply_adds": 0.7}),
        (("head", "neurons"), {"parameters": "45K"}),
        (("neurons",), {"parameters": "60%"}),
        (("block",), {"multiply_adds": 0.7}),
        (("block",), {"parameters": "45K"}),
        (("attention", "mlp"), {"multiply_adds": 0.7}),
        (("head", "attention", "mlp"), {"parameters": "60%"}),
    ],
)
def test_budgets_hold_and_no_unit_goes_in_vain(encoder: mope.DualEncoder, budget: Any, kinds: Any) -> None:
    table = invented(encoder, kinds=kinds)
    with unchanged(encoder.model):
        try:
            plan = mope.make_plan(encoder, table, **budget)
        except ValueError:  # blocks alone, or neurons alone, may be too little, which can be told without scores
            assert kinds in {("block",), ("neurons",)}
            with pytest.raises(ValueError, match="the least that can be reached"):
                mope.plan_range(encoder, kinds=kinds).check(**budget)
            return
    (measure, amount), *_ = budget.items()
    most = {"60%": 0.6, 0.7: 0.7}.get(amount, 0) * total(plan.before, measure) or 45e3
    assert total(plan.after, measure) <= most
    without_last = mope.DualEncoder(copy.deepcopy(encoder.model))
    mope.remove_units(without_last, plan.units[:-1])
    assert total(footprints(without_last), measure) > most


@pytest.mark.parametrize("family", ["SigLIP", "EVA02", "ConvNeXt", "transformers CLIP", "mT5", "CoCa"])
def test_a_plan_removes_what_masks_would(family: str) -> None:
    encoder = mope.DualEncoder(zoo.build(family))
    pairs = zoo.pairs_of(encoder, 4)
    plan = mope.make_plan(encoder, invented(encoder), parameters={"image": "80%", "text": "70%"})
    assert plan.units
    engine = PlainEngine(encoder)
    expected = {}
    for tower, inputs in (("image", pairs.images), ("text", pairs.tokens)):
        removed: list[Ablation] = [single_ablation(unit) for unit in plan.units if unit.tower == tower]
        expected[tower] = engine.embeddings(tower, inputs, removed)  # type: ignore[arg-type]
    smaller = mope.DualEncoder(copy.deepcopy(encoder.model))
    plan.apply(smaller)
    assert footprints(smaller) == plan.after
    with torch.no_grad():
        assert_close(smaller.embed("image", pairs.images), expected["image"], 1e-5)
        assert_close(smaller.embed("text", pairs.tokens), expected["text"], 1e-5)


def test_footprints_are_sums_by_hand(encoder: mope.DualEncoder) -> None:
    """40 wide, 3 layers, 4 heads, 56 neurons, 9 patches of 8 x 8 and a class token; 36 wide, 2 layers, 54 neurons, 9 tokens."""
    sizes = footprints(encoder)
    layer = 4 * (40 * 40 + 40) + 2 * 40 * 56 + 56 + 40 + 4 * 40
    assert sizes["image"].parameters == 3 * layer + 3 * 64 * 40 + 40 + 10 * 40 + 4 * 40 + 40 * 28
    assert sizes["text"].token_embedding == 50 * 36
    macs = 10 * (4 * 40 * 40 + 2 * 40 * 56) + 2 * 10 * 10 * 40
    assert sizes["image"].multiply_adds == 3 * macs + 9 * 3 * 64 * 40 + 40 * 28


def test_layers_that_lose_everything_cost_nothing_and_train(encoder: mope.DualEncoder, pairs: mope.Pairs) -> None:
    units = [
        unit
        for unit in enumerate_units(encoder, ("head", "neurons"), {}, 2, ("image", "text"))
        if (unit.tower, unit.layer, unit.kind) in {("image", 1, "head"), ("text", 0, "neurons")}
    ]
    removed = {t: [single_ablation(u) for u in units if u.tower == t] for t in ("image", "text")}
    engine = PlainEngine(encoder)
    expected = (
        engine.embeddings("image", pairs.images, removed["image"]),
        engine.embeddings("text", pairs.tokens, removed["text"]),
    )
    mope.remove_units(encoder, units)
    assert encoder.image.blocks[1].attention.num_units == 0  # type: ignore[union-attr]
    with torch.no_grad():
        assert_close(encoder.embed("image", pairs.images), expected[0], 1e-5)
        assert_close(encoder.embed("text", pairs.tokens), expected[1], 1e-5)
    # Another look at the same model, and another cut of it.
    again = mope.DualEncoder(copy.deepcopy(encoder.model))
    importance = mope.WeightedImportance(again, [(mope.MoPEImportance(again, pairs, groups=2, progress=False), 1.0)])
    assert mope.prune(again, importance, ffn_ratio=0.3, towers=("image",)).neurons == 3 * 17
    model = again.model.train()
    loss = again.embed("image", pairs.images).square().mean() + again.embed("text", pairs.tokens).square().mean()
    loss.backward()
    assert all(parameter.grad is None or torch.isfinite(parameter.grad).all() for parameter in model.parameters())


@pytest.mark.parametrize(
    "wrong",
    [
        mope.scoring.Unit("head", "text", 1, 3, (36, 37)),
        mope.scoring.Unit("neurons", "image", 3, 0, (0,)),
        mope.scoring.Unit("neurons", "image", 0, 0, (-1,)),
        mope.scoring.Unit("block", "text", 2, 0),
    ],
)
def test_units_that_there_are_not_leave_the_model_alone(encoder: mope.DualEncoder, wrong: mope.scoring.Unit) -> None:
    good = enumerate_units(encoder, ("head", "block"), {}, 2, ("image",))
    with (
        unchanged(encoder.model),
        pytest.raises(
            ValueError, match=r"units must be of the model as it is; found \w+ of|indices must name some, not all"
        ),
    ):
        mope.remove_units(encoder, [good[0], good[-1], wrong])


@pytest.mark.parametrize("round_to", [4, 8])
def test_widths_are_multiples(encoder: mope.DualEncoder, round_to: int) -> None:
    plan = mope.make_plan(encoder, invented(encoder, kinds=("head", "neurons")), parameters="70%", round_to=round_to)
    plan.apply(encoder)
    left = [block.feed_forward.num_units for t in encoder.towers.values() for block in t.blocks]  # type: ignore[union-attr]
    whole = {56, 54}  # an MLP that lost nothing
    assert all(count % round_to == 0 or count in whole for count in left)
    assert any(count not in whole for count in left)
    assert_trains(encoder, pairs_for(encoder.model, 6))


@pytest.mark.parametrize(("neurons", "multiple"), [(384, 16), (70, 8), (6, 1)])
def test_auto_is_a_multiple_that_leaves_a_choice(neurons: int, multiple: int) -> None:
    model = clip(vision={"mlp_ratio": (neurons + 0.5) / 40}, text={"mlp_ratio": 12.0})
    encoder = mope.DualEncoder(model)
    table = invented(encoder, kinds=("head", "neurons"))
    plan = mope.make_plan(encoder, table, parameters="70%", round_to="auto")
    assert plan.settings["round_to"] == multiple
    assert plan.units == mope.make_plan(encoder, table, parameters="70%", round_to=multiple).units


def test_minimums_are_kept(encoder: mope.DualEncoder) -> None:
    plan = mope.make_plan(
        encoder, invented(encoder, kinds=("head", "neurons")), parameters="60%", min_heads=2, min_neurons=10
    )
    plan.apply(encoder)
    for layer in encoder.layers:
        assert layer.block.attention is not None
        assert layer.block.attention.num_units >= 2
        assert layer.block.feed_forward is not None
        assert layer.block.feed_forward.num_units >= 10


def test_what_cannot_be_empty_is_not(encoder: mope.DualEncoder) -> None:
    hub = mope.DualEncoder(zoo.build("transformers CLIP"))
    plan = mope.make_plan(hub, invented(hub, kinds=("head", "neurons")), parameters="45%")
    plan.apply(hub)
    assert all(layer.block.attention.num_units >= 1 for layer in hub.layers)  # type: ignore[union-attr]


def test_several_budgets_all_hold(encoder: mope.DualEncoder) -> None:
    plan = mope.make_plan(encoder, invented(encoder), parameters={"image": "80%", "text": "70%"}, multiply_adds="65%")
    for tower, share in (("image", 0.8), ("text", 0.7)):
        assert plan.after[tower].parameters <= share * plan.before[tower].parameters  # type: ignore[index]
    assert total(plan.after, "multiply_adds") <= 0.65 * total(plan.before, "multiply_adds")


def test_a_latency_budget_is_measured(encoder: mope.DualEncoder) -> None:
    """On a machine whose time is its multiply-adds."""

    def clock(of: mope.DualEncoder, *, batch_size: int) -> dict[str, float]:
        return {tower: batch_size * size.multiply_adds * 1e-9 for tower, size in footprints(of).items()}

    plan = mope.make_plan(encoder, invented(encoder), latency="70%", batch_size=2, timer=clock)
    measured: Any = plan.settings["latency"]
    assert measured["before"] == clock(encoder, batch_size=2)
    assert sum(measured["after"].values()) <= 0.7 * sum(measured["before"].values())
    by_macs = mope.make_plan(encoder, invented(encoder), multiply_adds="70%", refill=False)
    assert plan.units == by_macs.units


def test_time_is_taken_of_both_towers(encoder: mope.DualEncoder) -> None:
    with unchanged(encoder.model):
        seconds = latencies(encoder, batch_size=2, repeats=3)
    assert seconds.keys() == {"image", "text"}
    assert all(0 < value < 10 for value in seconds.values())


def test_plans_survive_the_disk(encoder: mope.DualEncoder, tmp_path: Path) -> None:
    plan = mope.make_plan(encoder, invented(encoder), parameters="60%")
    plan.save(tmp_path / "plan.json")
    assert mope.Plan.load(tmp_path / "plan.json") == plan
    assert "of 0.04 M parameters" in str(plan)
    for broken in ("", "[]", "{}", json.dumps({"format": 3}), json.dumps({"format": 2, "scores": []})):
        (tmp_path / "broken.json").write_text(broken)
        with pytest.raises(ValueError, match="path must be of a plan written by"):
            mope.Plan.load(tmp_path / "broken.json")


def test_a_plan_for_other_weights_is_refused(encoder: mope.DualEncoder) -> None:
    plan = mope.make_plan(encoder, invented(encoder), parameters="60%")
    other = mope.DualEncoder(clip(seed=1))
    with (
        unchanged(other.model),
        pytest.raises(mope.errors.WrongModelError, match="the model that the plan was made for"),
    ):
        plan.apply(other)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({}, "one of parameters, multiply_adds and latency must be given"),
        ({"parameters": "2%"}, "budgets must leave parameters of at least .* the least that can be reached"),
        ({"parameters": "half"}, "parameters must be an amount such as"),
        ({"parameters": -3}, "parameters must be an amount such as"),
        ({"parameters": "200%"}, "parameters must be less than the"),
        ({"parameters": {"audio": "50%"}}, "parameters must be for image, text or both"),
        ({"parameters": "50%", "round_to": 0}, "round_to must be at least 1"),
    ],
)
def test_what_cannot_be_is_refused(encoder: mope.DualEncoder, arguments: Any, match: str) -> None:
    table = invented(encoder)
    with unchanged(encoder.model), pytest.raises(ValueError, match=match):
        mope.make_plan(encoder, table, **arguments)


@pytest.mark.parametrize(
    ("amount", "number"),
    [
        ("50%", 500),
        ("86M", 86e6),
        ("8 GFLOPs", 8e9),
        ("8g", 8e9),
        ("1.5K", 1500),
        (0.25, 250),
        (12, 12),
        ("20ms", 0.02),
    ],
)
def test_amounts(amount: Any, number: float) -> None:
    assert parse_amount("parameters", amount, 1000) == pytest.approx(number)


@pytest.mark.parametrize("unit", ["5%", 0.05, 1000, {"image": "1K"}])
def test_the_least_is_told_in_the_unit_asked_and_serves(encoder: mope.DualEncoder, unit: Any) -> None:
    table = invented(encoder)
    with pytest.raises(ValueError, match=r"parameters( of the \w+ tower)? of at least") as caught:
        mope.make_plan(encoder, table, parameters=unit)
    said = re.search(r"of at least ([\d.]+)(%|K|)", str(caught.value))
    assert said is not None
    asked, *_ = unit.values() if isinstance(unit, dict) else (unit,)
    assert said[2] == (re.sub(r"[\d.]", "", asked) if isinstance(asked, str) else "")
    advised: Any = said[0].removeprefix("of at least ") if isinstance(asked, str) else float(said[1])
    assert f"found {asked!r} for parameters" in str(caught.value)
    mope.make_plan(encoder, table, parameters=dict.fromkeys(unit, advised) if isinstance(unit, dict) else advised)


@pytest.mark.parametrize(
    ("asked", "number", "total", "expected"),
    [
        ("5%", 170.0, 1000, "17%"),
        ("5%", 170.1, 1000, "17.1%"),
        (0.05, 170.1, 1000, "0.171"),
        ("2M", 3.1e6, 9e6, "3.1M"),
        ("2m", 3.0000001e6, 9e6, "3.001M"),
        (2000, 3000.2, 9000, "3001"),
        ("20ms", 0.0312, 1.0, "31.2ms"),
        (0.02, 0.0312, 1.0, "0.0312"),
    ],
)
def test_numbers_in_the_unit_asked(asked: Any, number: float, total: float, expected: str) -> None:
    assert in_unit_of(asked, number, total) == expected


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), chunk=st.sampled_from([1, 4, 8]))
def test_orders_are_complete_and_nested(seed: int, chunk: int) -> None:
    table = invented(ENCODER, seed=seed)
    steps = removal_order(table, lambda unit: freed_parameters(ENCODER, unit), chunk)
    order = [score.unit for step in steps for score in step]
    blocks = {(u.tower, u.layer): place for place, u in enumerate(order) if u.kind == "block"}
    assert len(blocks) == 5
    for place, unit in enumerate(order):
        assert place <= blocks[unit.tower, unit.layer]  # nothing of a block after it
    for tower, layer in blocks:
        mine = [u for u in order if (u.tower, u.layer, u.kind) == (tower, layer, "neurons")]
        assert [u.index for u in mine] == sorted(u.index for u in mine)


def test_the_papers_budget_for_vit_l_14_is_met_within_one_percent() -> None:
    """86 M of 304 M and 42 M of 85 M (arXiv 2403.07839), in layers of its size, of which there are a few; without weights."""
    config = open_clip.get_model_config("ViT-L-14")
    assert config is not None
    with torch.device("meta"):
        sizes = mope.cost.footprints(mope.DualEncoder(open_clip.CLIP(**config)))
        config["vision_cfg"]["layers"], config["text_cfg"]["layers"] = 5, 3
        encoder = mope.DualEncoder(open_clip.CLIP(**config))
    assert sizes["image"].parameters == pytest.approx(304e6, rel=0.01)
    assert sizes["text"].parameters == pytest.approx(85e6, rel=0.02)
    table = invented(encoder, kinds=("head", "neurons"), groups=64)
    shares = {"image": 86 / 304, "text": 42 / 85}
    plan = mope.make_plan(encoder, table, parameters=shares)
    for tower, share in shares.items():
        assert plan.after[tower].parameters == pytest.approx(share * plan.before[tower].parameters, rel=0.01)
