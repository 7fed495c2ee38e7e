"""What was kept, against the model that a plan leaves."""

from pathlib import Path

import pytest

from torch_pruning_mope import DualEncoder, Plan, ScoreTable
from torch_pruning_mope.report._layers import planned_layers, removed_channels, share_removed
from torch_pruning_mope.scoring import Score, Unit

from ..models import clip


def test_layers_are_those_of_the_pruned_model(full_run: Path) -> None:
    encoder, plan = DualEncoder(clip()), Plan.load(full_run / "plan.json")
    plan.apply(encoder)
    layers = planned_layers(plan, ScoreTable.load(full_run / "scores.json"))
    for tower in ("image", "text"):
        left = [
            (layer.heads.count(True), (layer.neurons or 0) - layer.removed_neurons)
            for layer in layers
            if layer.tower == tower and not layer.removed
        ]
        blocks = [layer.block for layer in encoder.layers if layer.tower == tower]
        expected = [
            (b.attention.num_units if b.attention else 0, b.feed_forward.channels if b.feed_forward else 0)
            for b in blocks
        ]
        assert left == expected
    gone = {(layer.tower, layer.index) for layer in layers if layer.removed}
    assert gone == {(unit.tower, unit.layer) for unit in plan.units if unit.kind == "block"}


def plan_of(*units: Unit) -> Plan:
    return Plan(tuple(Score(unit, 0.0, 0.0, 0.0, 1, 2) for unit in units), {}, {})


def test_whole_layers_and_parts_of_groups() -> None:
    half = Unit("neurons", "image", 1, 0, (0, 1))
    removed = removed_channels(
        plan_of(Unit("block", "image", 0, 0), half, Unit("attention", "text", 0, 0, (0, 1, 2, 3)))
    )
    assert share_removed(Unit("head", "image", 0, 1, (5, 6)), removed) == 1.0
    assert share_removed(Unit("neurons", "image", 1, 3, (1, 2, 3, 4)), removed) == pytest.approx(0.25)
    assert share_removed(Unit("head", "image", 1, 0, (0, 1)), removed) == 0.0
    assert share_removed(Unit("head", "text", 0, 1, (2, 3)), removed) == 1.0
    assert share_removed(Unit("block", "text", 0, 0), removed) == 0.0


def test_without_scores_only_what_went_is_known() -> None:
    (layer,) = planned_layers(
        plan_of(Unit("head", "text", 2, 1, (4, 5)), Unit("neurons", "text", 2, 0, (7, 8, 9))), None
    )
    assert (layer.tower, layer.index, layer.heads, layer.neurons) == ("text", 2, (), None)
    assert (layer.removed_heads, layer.removed_neurons, layer.removed) == (1, 3, False)
