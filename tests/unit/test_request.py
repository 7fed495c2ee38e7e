"""Requests to a pruner, and the units in which they result."""

import math
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import torch_pruning_mope as mope
from tests.asserts import unchanged, unchecked
from tests.unit.models import clip
from torch_pruning_mope import Counts, DualEncoder
from torch_pruning_mope.pruning._ratios import HeadRatio, Ratio, scheduler, share
from torch_pruning_mope.pruning._request import PruningRequest, _check_ratio


@given(st.integers(1, 4096), st.integers(0, 999))
def test_ratios_survive_torch_prunings_rounding(total: int, thousandths: int) -> None:
    """It keeps ``int(total * (1 - ratio))`` of all layers together; what goes is the ceiling, by exact arithmetic."""
    ratio = Ratio(thousandths / 1000)
    assert total - int(total * (1 - ratio)) == share(ratio, total) == -(-thousandths * total // 1000)
    assert min(ratio, 1.0) is ratio  # as it caps it


@given(st.integers(1, 40), st.integers(0, 99), st.integers(1, 6))
def test_head_schedules_end_where_asked(heads: int, hundredths: int, steps: int) -> None:
    """Of a single layer, Torch-Pruning removes the ceiling of each step's ratio of the heads that are left."""
    schedule = scheduler(HeadRatio.of(hundredths / 100, heads), steps)
    assert len(schedule) == steps + 1
    left = heads
    for step in range(1, steps + 1):
        left -= math.ceil(schedule[step] * left)
        assert heads - left == share(hundredths / 100 * step / steps, heads)


def test_other_schedules_are_linear() -> None:
    assert [float(ratio) for ratio in scheduler(Ratio(0.8), 4)] == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8])


BAD_RATIOS = [-0.1, 1.0, 1.5, math.nan, math.inf]
RATIOS = ["head_ratio", "ffn_ratio", "width_ratio"]


@pytest.mark.parametrize("name", RATIOS)
def test_ratios_outside_are_refused(encoder: DualEncoder, name: str) -> None:
    for ratio in BAD_RATIOS:
        with unchanged(encoder.model), pytest.raises(ValueError, match=rf"{name} must be in \[0, 1\); found {ratio}"):
            encoder.pruner_arguments(**{name: ratio})  # type: ignore[arg-type]


@pytest.mark.parametrize("ratio", ["0.5", None, True, 1 + 0j])
def test_ratios_must_be_numbers(ratio: object) -> None:
    with pytest.raises(TypeError, match=r"head_ratio must be a number in \[0, 1\); found"):
        unchecked(_check_ratio)("head_ratio", ratio)


@pytest.mark.parametrize("ratio", [1.0, -0.5])
def test_own_ratios_outside_are_refused(encoder: DualEncoder, ratio: float) -> None:
    first = encoder.image.blocks[0].module.mlp.c_fc  # type: ignore[union-attr]
    with unchanged(encoder.model), pytest.raises(ValueError, match=r"pruning_ratio_dict\[Linear\] must be in \[0, 1\)"):
        encoder.pruner_arguments(pruning_ratio_dict={first: ratio})
    with pytest.raises(ValueError, match=r"pruning_ratio_dict\[Linear, Linear\] must be in"):
        encoder.pruner_arguments(pruning_ratio_dict={(first, first): ratio})


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (
            {"head_ratio": 0.7},
            r"head_ratio must leave every layer at least 1 head\(s\); found 0\.7, the most is 0\.6666",
        ),
        ({"head_ratio": 0.76, "towers": ("image",)}, r"found 0\.76, the most is 0\.75"),
        ({"head_ratio": 0.75, "global_pruning": True}, r"the most is 0\.7222"),
        ({"ffn_ratio": 0.99}, r"ffn_ratio must leave every layer at least 1 neuron\(s\)"),
        ({"ffn_ratio": 0.9, "round_to": 8}, r"at least 8 neuron\(s\); found 0\.9, the most is 0\.8518"),
        ({"ffn_ratio": 0.99, "global_pruning": True}, r"the most is 0\.9818"),
        ({"width_ratio": 0.98}, r"width_ratio must leave every layer at least 1 residual channel\(s\)"),
        ({"iterative_steps": 0}, "iterative_steps must be at least 1; found 0"),
        ({"round_to": 0}, "round_to must be at least 1, or None; found 0"),
        ({"towers": ()}, r"towers must name some of image, text; found \(\)"),
    ],
)
def test_what_cannot_be_done_is_refused(encoder: DualEncoder, arguments: dict[str, Any], match: str) -> None:
    with unchanged(encoder.model), pytest.raises(ValueError, match=match):
        encoder.pruner_arguments(**arguments)
    with unchanged(encoder.model), pytest.raises(ValueError, match=match):
        mope.prune(encoder, lambda group: None, **arguments)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"iterative_steps": 2.5}, r"iterative_steps must be a whole number of at least 1; found 2\.5"),
        ({"iterative_steps": 2.0}, r"iterative_steps must be a whole number of at least 1; found 2\.0"),
        ({"iterative_steps": "3"}, "iterative_steps must be a whole number of at least 1; found '3'"),
        ({"round_to": 8.0}, r"round_to must be a whole number of at least 1, or None; found 8\.0"),
        ({"ignored_layers": "visual"}, "ignored_layers must be a list of modules; found 'visual'"),
        (
            {"ignored_layers": ["visual"]},
            r"ignored_layers must be modules of encoder\.model; found str\. A module by its name",
        ),
        ({"ignored_layers": [nn.Linear]}, r"ignored_layers must be modules of encoder\.model; found type"),
        ({"ignored_layers": [nn.Parameter()]}, "found Parameter.*a bare parameter: the module that holds it"),
        ({"ignored_layers": nn.Linear(1, 1)}, "ignored_layers must be a list of modules; found Linear"),
        ({"pruning_ratio_dict": {"visual": 0.5}}, "pruning_ratio_dict's keys must be modules .* found str"),
    ],
)
def test_other_types_are_refused(encoder: DualEncoder, arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(TypeError, match=match):
        _request(encoder, **arguments)


def _request(encoder: DualEncoder, **arguments: Any) -> PruningRequest:
    """Without the run-time type check of the tests."""
    made = object.__new__(PruningRequest)
    defaults = {field.name: field.default for field in fields(PruningRequest)} | {"pruning_ratio_dict": {}}
    given_ = defaults | {"layers": encoder.layers, "streams": {}} | arguments
    for name, value in given_.items():
        object.__setattr__(made, name, value)
    unchecked(PruningRequest.__post_init__)(made)
    return made


@pytest.mark.parametrize("key", ["visual.transformer.resblocks.0", "transformer.resblocks.1.attn.v_proj"])
def test_heads_have_no_channel_ratio(encoder: DualEncoder, key: str) -> None:
    module = encoder.model.get_submodule(key)
    with pytest.raises(ValueError, match=r"must be 0 for the projections of attention; found 0\.5"):
        encoder.pruner_arguments(pruning_ratio_dict={module: 0.5})
    assert encoder.request(head_ratio=0.25, pruning_ratio_dict={module: 0.0}).asked == Counts(heads=4)


def test_modules_from_elsewhere_are_refused() -> None:
    """An attention from before the model was wrapped is no longer in it, and would be ignored in vain."""
    model = clip()
    replaced = model.visual.transformer.resblocks[0].attn
    encoder = DualEncoder(model)
    with pytest.raises(
        ValueError, match=r"modules of encoder\.model as it is now; found MultiheadAttention from elsewhere"
    ):
        encoder.pruner_arguments(head_ratio=0.5, ignored_layers=[replaced])
    with pytest.raises(ValueError, match="found Linear from elsewhere"):
        encoder.pruner_arguments(pruning_ratio_dict={nn.Linear(1, 1): 0.5})


def test_unknown_towers_are_refused(encoder: DualEncoder) -> None:
    with pytest.raises(ValueError, match=r"towers must name some of image, text; found \('vision',\)"):
        unchecked(DualEncoder.request)(encoder, towers=("vision",))


@pytest.mark.parametrize("most", [{"head_ratio": 0.66}, {"ffn_ratio": 0.98}, {"width_ratio": 0.97}])
def test_just_less_is_accepted(encoder: DualEncoder, most: dict[str, float]) -> None:
    assert encoder.request(**most).asked != Counts()


def test_a_layer_that_is_ignored_cannot_be_emptied(encoder: DualEncoder) -> None:
    """The check, like the count, is over the layers that the ratio is for."""
    attentions = [block.module.attn for block in encoder.text.blocks]
    with pytest.raises(ValueError, match="head_ratio must leave"):
        encoder.request(head_ratio=0.75)
    assert encoder.request(head_ratio=0.75, ignored_layers=attentions).asked == Counts(heads=9)


def test_asked_counts(encoder: DualEncoder) -> None:
    assert encoder.request(head_ratio=0.3, ffn_ratio=0.5, width_ratio=0.1).asked == Counts(
        heads=3 * 2 + 2 * 1, neurons=3 * 28 + 2 * 27, width=4 + 4
    )
    everywhere = encoder.request(head_ratio=0.3, ffn_ratio=0.5, width_ratio=0.1, global_pruning=True)
    assert everywhere.asked == Counts(heads=6, neurons=138, width=8)
    assert encoder.request(head_ratio=0.3, towers=("text",)).asked == Counts(heads=2)


@pytest.mark.parametrize("inner", [False, True])
def test_ignored_layers_are_not_counted(encoder: DualEncoder, inner: bool) -> None:
    """The module itself is ignored, or one that holds it."""
    block = encoder.image.blocks[0].module
    layer: nn.Module = block.mlp.c_fc if inner else block  # type: ignore[union-attr, assignment]
    asked = encoder.request(head_ratio=0.25, ffn_ratio=0.5, ignored_layers=[layer]).asked
    assert asked == Counts(heads=(3 if inner else 2) + 2, neurons=2 * 28 + 2 * 27)
