"""MetaPruner removes what was asked for, and what is left computes what a model built from the kept weights computes."""

import copy
import math
import re
from collections.abc import Sequence
from inspect import signature
from typing import Any

import pytest
import torch
import torch_pruning as tp
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import torch_pruning_mope as mope
from tests.asserts import assert_close, assert_trains, unchanged
from tests.unit import reference
from tests.unit.models import clip, original_state, pairs_for
from torch_pruning_mope import Counts, DualEncoder
from torch_pruning_mope.errors import PruningMismatchError, WrongModelError

# Eleven heads in each layer, odd widths, both wider than the joint embedding of 28.
WIDE: dict[str, Any] = {
    "vision": {"width": 44, "head_width": 4, "mlp_ratio": 1.3},
    "text": {"width": 33, "heads": 11, "mlp_ratio": 1.3},
}
HEADS, HEAD_DIMS = 11, {"image": 4, "text": 3}
LAYERS, WIDTHS, NEURONS = {"image": 3, "text": 2}, {"image": 44, "text": 33}, {"image": 57, "text": 42}
RATIO = st.one_of(st.just(0.0), st.sampled_from([0.1, 0.25, 0.5, 0.7, 0.9]))


def share(ratio: float, total: int) -> int:
    """The ceiling, in whole thousandths so that 0.7 * 10 is 7."""
    return math.ceil(round(ratio * 1000) * total / 1000)


def kept_of(history: Sequence[Any]) -> dict[str, reference.Kept]:
    """Sizes that one step of a pruner left, read off its own history."""
    gone: dict[tuple[str, str, int], set[int]] = {}
    for name, _, indices in history:
        tower = "image" if name.startswith("visual") else "text"
        layer = int(name.split("resblocks.")[1].split(".")[0]) if "resblocks" in name else 0
        if name.endswith("attn.out_proj"):
            key, indices = ("heads", tower, layer), [index // HEAD_DIMS[tower] for index in indices]
        elif name.endswith("mlp.c_fc"):
            key = ("neurons", tower, layer)
        else:
            key = ("width", tower, 0)
        assert key not in gone, f"{key} pruned twice"
        gone[key] = {int(index) for index in indices}
    kept = {tower: reference.Kept() for tower in LAYERS}
    for (kind, tower, layer), lost in gone.items():
        total = {"heads": HEADS, "neurons": NEURONS[tower], "width": WIDTHS[tower]}[kind]
        left = sorted(set(range(total)) - lost)
        if kind == "width":
            kept[tower].width = left
        else:
            getattr(kept[tower], kind)[layer] = left
    return kept


def expected_parameters(kept: dict[str, reference.Kept]) -> int:
    """From the counts alone."""
    total = 1  # temperature
    for tower, layers in LAYERS.items():
        d = len(kept[tower].width or range(WIDTHS[tower]))
        tokens = 10 if tower == "image" else 9
        total += tokens * d + (3 * 64 * d + d + 2 * d if tower == "image" else 50 * d)  # stem
        total += 2 * d + d * 28  # last norm, projection
        for layer in range(layers):
            a = HEAD_DIMS[tower] * len(kept[tower].heads.get(layer, range(HEADS)))
            f = len(kept[tower].neurons.get(layer, range(NEURONS[tower])))
            total += 4 * d + 3 * (d * a + a) + a * d + d + d * f + f + f * d + d
    return total


def expected_multiply_adds(kept: dict[str, reference.Kept]) -> int:
    """Of one image and one caption: matrix products and the convolution."""
    total = 0
    for tower, layers in LAYERS.items():
        d = len(kept[tower].width or range(WIDTHS[tower]))
        tokens = 10 if tower == "image" else 9
        total += d * 28 + (9 * 3 * 64 * d if tower == "image" else 0)
        for layer in range(layers):
            a = HEAD_DIMS[tower] * len(kept[tower].heads.get(layer, range(HEADS)))
            f = len(kept[tower].neurons.get(layer, range(NEURONS[tower])))
            total += tokens * (4 * d * a + 2 * d * f) + 2 * tokens * tokens * a
    return total


def measured_multiply_adds(encoder: DualEncoder) -> int:
    inputs = encoder.example_inputs
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        encoder.embed("image", inputs["images"])
        encoder.embed("text", inputs["tokens"])
    flops = counter.get_total_flops()
    assert flops % 2 == 0
    return flops // 2


def double_pairs(encoder: DualEncoder, count: int) -> mope.Pairs:
    """Pairs for a model in double precision, where outputs that should be equal are so to 1e-10."""
    pairs = pairs_for(encoder.model, count)
    return mope.Pairs(pairs.images.double(), pairs.tokens)


def importance_for(encoder: DualEncoder, pairs: mope.Pairs, name: str) -> Any:
    fallback = tp.importance.GroupMagnitudeImportance()
    if name == "mope":
        return mope.MoPEImportance(encoder, pairs, groups=4, progress=False, fallback=fallback)
    return mope.WeightedImportance(encoder, [(tp.importance.RandomImportance(), 1.0)], fallback=fallback)


def check_against_reference(
    encoder: DualEncoder, state: dict[str, torch.Tensor], kept: dict[str, reference.Kept], pairs: mope.Pairs
) -> None:
    with torch.no_grad():
        image = reference.image_embeddings(state, pairs.images, HEAD_DIMS["image"], kept["image"])
        text = reference.text_embeddings(state, pairs.tokens, HEAD_DIMS["text"], kept["text"])
        assert_close(encoder.embed("image", pairs.images), image, 1e-10)
        assert_close(encoder.embed("text", pairs.tokens), text, 1e-10)


@settings(max_examples=6)
@example(head=0.25, ffn=0.0, width=0.9, global_pruning=False, towers=("image", "text"), criterion="random")
@example(head=0.25, ffn=0.25, width=0.9, global_pruning=False, towers=("image", "text"), criterion="random")
@given(
    head=RATIO,
    ffn=RATIO,
    width=RATIO,
    global_pruning=st.booleans(),
    towers=st.sampled_from([("image", "text"), ("image",), ("text",)]),
    criterion=st.sampled_from(["mope", "random"]),
)
def test_one_step_removes_what_is_asked_exactly(
    head: float, ffn: float, width: float, global_pruning: bool, towers: tuple[Any, ...], criterion: str
) -> None:
    torch.manual_seed(1)
    encoder = DualEncoder(clip(**WIDE).double())
    pairs, state = double_pairs(encoder, 8), original_state(encoder)
    untouched = copy.deepcopy(encoder.model)
    pruner = tp.pruner.MetaPruner(
        encoder.model,
        importance=importance_for(encoder, pairs, criterion),
        **encoder.pruner_arguments(
            head_ratio=head, ffn_ratio=ffn, width_ratio=width, global_pruning=global_pruning, towers=towers
        ),
    )
    pruner.step()

    # The counts.
    removed = encoder.removed
    for kind, ratio, sizes in (
        ("heads", head, dict.fromkeys(towers, HEADS)),
        ("neurons", ffn, {tower: NEURONS[tower] for tower in towers}),
    ):
        found = {tower: removed[f"{tower}.{kind}"] for tower in LAYERS}
        if global_pruning:
            total = sum(sizes[tower] * LAYERS[tower] for tower in towers)
            assert sum(map(sum, found.values())) == share(ratio, total)
        for tower, layers in LAYERS.items():
            if tower not in towers:
                assert found[tower] == [0] * layers
            elif not global_pruning:
                assert found[tower] == [share(ratio, sizes[tower])] * layers
            assert all(lost < (HEADS if kind == "heads" else NEURONS[tower]) for lost in found[tower])
    assert encoder.widths == {t: w - (share(width, w) if t in towers else 0) for t, w in WIDTHS.items()}

    # The outputs, the sizes, the training.
    kept = kept_of(pruner.pruning_history())
    check_against_reference(encoder, state, kept, pairs)
    assert sum(p.numel() for p in encoder.model.parameters()) == expected_parameters(kept)
    assert measured_multiply_adds(encoder) == expected_multiply_adds(kept)
    if width == 0:
        untouched.load_state_dict(reference.masked_state(state, HEAD_DIMS, kept))
        with torch.no_grad():
            assert_close(encoder.embed("image", pairs.images), untouched.encode_image(pairs.images), 1e-10)
            assert_close(encoder.embed("text", pairs.tokens), untouched.encode_text(pairs.tokens), 1e-10)
    assert_trains(encoder, pairs)


@pytest.mark.parametrize("option", ["layer scale", "linear projection", "average pool", "custom blocks"])
def test_other_forms_of_model_prune_and_train(option: str) -> None:
    import open_clip

    forms: dict[str, dict[str, Any]] = {
        "layer scale": {"vision": {"ls_init_value": 0.3}, "text": {"ls_init_value": 0.4}},
        "linear projection": {"kind": open_clip.CustomTextCLIP, "text": {"proj_bias": True}},
        "average pool": {"vision": {"pool_type": "avg"}, "text": {"pool_type": "last"}},
        "custom blocks": {"vision": {"block_type": "custom"}, "text": {"scale_attn": True}},
    }
    encoder = DualEncoder(clip(**forms[option]))
    pairs = pairs_for(encoder.model, 8)
    importance = importance_for(encoder, pairs, "mope")
    removed = mope.prune(encoder, importance, head_ratio=0.5, ffn_ratio=0.8, width_ratio=0.7)
    assert removed == Counts(heads=3 * 2 + 2 * 2, neurons=3 * 45 + 2 * 44, width=28 + 26)
    assert encoder.embed("image", pairs.images).shape == (8, 28)
    assert_trains(encoder, pairs)


def test_torch_prunings_counter_agrees() -> None:
    encoder = DualEncoder(clip(**WIDE))
    pairs = pairs_for(encoder.model, 6)
    inputs = {"image": encoder.example_inputs["images"], "text": encoder.example_inputs["tokens"]}
    before = tp.utils.count_ops_and_params(encoder.model, inputs)
    mope.prune(encoder, importance_for(encoder, pairs, "random"), ffn_ratio=0.5)
    after = tp.utils.count_ops_and_params(encoder.model, inputs)
    lost = 3 * 29 * 44 * 2 + 2 * 21 * 33 * 2
    assert before[1] - after[1] == lost + 3 * 29 + 2 * 21
    products = 10 * 3 * 29 * 44 * 2 + 9 * 2 * 21 * 33 * 2
    biases, activations = 3 * 29 + 2 * 21, 10 * 3 * 29 + 9 * 2 * 21  # which it counts, too
    assert before[0] - after[0] == products + biases + activations


# Corrections of Torch-Pruning: the same check fails where one of them is left out.


@pytest.mark.parametrize("left_out", ["none", "layer norm", "outputs"])
def test_width_needs_each_correction(left_out: str) -> None:
    encoder = DualEncoder(clip(**WIDE).double())
    pairs, state = double_pairs(encoder, 6), original_state(encoder)
    arguments = encoder.pruner_arguments(width_ratio=0.9)
    norms = {kind for kind in arguments["customized_pruners"] if issubclass(kind, torch.nn.LayerNorm)}
    assert norms
    for kind in {"none": set(), "layer norm": norms, "outputs": {tp.ops._OutputOp}}[left_out]:
        del arguments["customized_pruners"][kind]
    importance = importance_for(encoder, pairs, "random")
    pruner = tp.pruner.MetaPruner(encoder.model, importance=importance, **arguments)
    pruner.step()
    kept = kept_of(pruner.pruning_history())
    if left_out == "outputs":
        assert encoder.widths == WIDTHS  # nothing went, silently
    elif left_out == "layer norm":
        with pytest.raises(AssertionError, match="relative error"):  # the weights are permuted
            check_against_reference(encoder, state, kept, pairs)
    else:
        assert encoder.widths == {"image": 4, "text": 3}
        check_against_reference(encoder, state, kept, pairs)


# Steps.


@pytest.mark.parametrize(("steps", "global_pruning"), [(3, False), (4, True)])
def test_iterative_steps_reach_the_same_counts(steps: int, global_pruning: bool) -> None:
    encoder = DualEncoder(clip(**WIDE))
    pairs = pairs_for(encoder.model, 8)
    arguments: dict[str, Any] = {
        "head_ratio": 0.5,
        "ffn_ratio": 0.4,
        "width_ratio": 0.3,
        "global_pruning": global_pruning,
    }
    pruner = tp.pruner.MetaPruner(
        encoder.model,
        importance=importance_for(encoder, pairs, "random"),
        **encoder.pruner_arguments(iterative_steps=steps, **arguments),
    )
    heads = [encoder.counts().heads]
    for step in range(1, steps + 1):
        pruner.step()
        heads.append(encoder.counts().heads)
        if not global_pruning:
            assert encoder.removed["image.heads"] == [share(0.5 * step / steps, HEADS)] * 3
    assert heads == sorted(set(heads), reverse=True)  # every step removes some
    total = 5 * HEADS
    assert heads[0] - heads[-1] == (share(0.5, total) if global_pruning else 5 * share(0.5, HEADS))
    neurons = share(0.4, 3 * 57 + 2 * 42) if global_pruning else 3 * share(0.4, 57) + 2 * share(0.4, 42)
    assert encoder.counts().neurons == 3 * 57 + 2 * 42 - neurons
    assert encoder.widths == {"image": 44 - share(0.3, 44), "text": 33 - share(0.3, 33)}
    assert_trains(encoder, pairs)


def test_the_stock_schedule_removes_too_many_heads() -> None:
    """Torch-Pruning's own schedule multiplies the cumulative ratio with the heads that are left: 8 at 0.5 end as 1."""
    encoder = DualEncoder(clip(vision={"head_width": 5}))
    arguments = encoder.pruner_arguments(head_ratio=0.5, iterative_steps=4, towers=("image",))
    del arguments["iterative_pruning_ratio_scheduler"]
    pruner = tp.pruner.MetaPruner(
        encoder.model, importance=importance_for(encoder, pairs_for(encoder.model, 4), "random"), **arguments
    )
    left = []
    for _ in range(4):
        pruner.step()
        left.append(8 - encoder.removed["image.heads"][0])
    assert left == [7, 5, 3, 1]


def test_heads_need_a_channel_ratio() -> None:
    """Without a channel ratio above zero on the attention, no head goes."""
    encoder = DualEncoder(clip())
    arguments = encoder.pruner_arguments(head_ratio=0.5)
    arguments["pruning_ratio_dict"] = {}
    importance = importance_for(encoder, pairs_for(encoder.model, 4), "random")
    tp.pruner.MetaPruner(encoder.model, importance=importance, **arguments).step()
    assert encoder.removed["image.heads"] == [0, 0, 0]


def _drowned(encoder: DualEncoder) -> None:
    """Mutates the encoder: one layer's heads are all far smaller than any other's."""
    attention = encoder.image.blocks[1].module.attn
    with torch.no_grad():
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj):  # type: ignore[union-attr]
            projection.weight.mul_(1e-3)  # type: ignore[union-attr]


def test_stock_criteria_spare_a_layer_whose_heads_all_fall() -> None:
    """Under global pruning a layer whose heads all fall keeps them all, silently."""
    encoder = DualEncoder(clip())
    _drowned(encoder)
    arguments = encoder.pruner_arguments(head_ratio=0.3, global_pruning=True)
    criterion = tp.importance.GroupMagnitudeImportance(normalizer=None)
    tp.pruner.MetaPruner(encoder.model, importance=criterion, **arguments).step()
    assert encoder.removed["image.heads"][1] == 0
    assert encoder.counts().heads > 18 - share(0.3, 18)


def test_a_mismatch_raises_before_anything_goes() -> None:
    encoder = DualEncoder(clip())
    _drowned(encoder)
    criterion = tp.importance.GroupMagnitudeImportance(normalizer=None)
    with (
        unchanged(encoder.model),
        pytest.raises(PruningMismatchError, match=r"heads to remove must be 6; .* would remove [0-5]\."),
    ):
        mope.prune(encoder, criterion, head_ratio=0.3, global_pruning=True)


def test_the_same_criterion_is_exact_when_wrapped() -> None:
    encoder = DualEncoder(clip())
    _drowned(encoder)
    criterion = tp.importance.GroupMagnitudeImportance(normalizer=None)
    wrapped = mope.WeightedImportance(encoder, [(criterion, 1.0)])
    assert mope.prune(encoder, wrapped, head_ratio=0.3, global_pruning=True).heads == 6
    assert encoder.removed["image.heads"][1] == 3  # all but one


def test_ties_of_a_stock_criterion_raise() -> None:
    """Every score ties, so Torch-Pruning cuts them all together."""
    encoder = DualEncoder(clip())

    def constant(group: Any) -> torch.Tensor:
        return torch.ones(len(group[0].idxs))

    with unchanged(encoder.model), pytest.raises(PruningMismatchError, match=r"neurons to remove must be 83"):
        mope.prune(encoder, constant, ffn_ratio=0.3, global_pruning=True)
    assert mope.prune(encoder, constant, ffn_ratio=0.3).neurons == 3 * 17 + 2 * 17


def test_width_without_a_fallback_raises(encoder: DualEncoder, pairs: mope.Pairs) -> None:
    importance = mope.MoPEImportance(encoder, pairs, groups=2, progress=False)
    with (
        unchanged(encoder.model),
        pytest.raises(PruningMismatchError, match=r"width to remove must be 16.*give a fallback"),
    ):
        mope.prune(encoder, importance, head_ratio=0.3, width_ratio=0.2)


@pytest.mark.parametrize("steps", [1, 3])
def test_prune_reports_and_calls_between_steps(encoder: DualEncoder, pairs: mope.Pairs, steps: int) -> None:
    seen: list[tuple[int, int]] = []
    importance = importance_for(encoder, pairs, "random")
    removed = mope.prune(
        encoder,
        importance,
        ffn_ratio=0.5,
        iterative_steps=steps,
        between_steps=lambda done: seen.append((done, encoder.counts().neurons)),
    )
    assert removed == Counts(neurons=3 * 28 + 2 * 27)
    assert [done for done, _ in seen] == list(range(1, steps))
    assert [left for _, left in seen] == sorted({left for _, left in seen}, reverse=True)


@pytest.mark.parametrize("frozen", ["image", "all"])
def test_frozen_parameters_are_pruned_and_stay_frozen(encoder: DualEncoder, pairs: mope.Pairs, frozen: str) -> None:
    for name, parameter in encoder.model.named_parameters():
        parameter.requires_grad_(frozen != "all" and not name.startswith("visual."))
    flags = {name: p.requires_grad for name, p in encoder.model.named_parameters()}
    importance = importance_for(encoder, pairs, "mope")
    removed = mope.prune(encoder, importance, head_ratio=0.25, ffn_ratio=0.5, width_ratio=0.25)
    assert removed == Counts(heads=3 * 1 + 2 * 1, neurons=3 * 28 + 2 * 27, width=10 + 9)
    assert {name: p.requires_grad for name, p in encoder.model.named_parameters()} == flags


# What else a pruner can be asked.


@pytest.mark.parametrize("criterion", ["mope", "random"])
def test_round_to_leaves_multiples(encoder: DualEncoder, pairs: mope.Pairs, criterion: str) -> None:
    importance = importance_for(encoder, pairs, criterion)
    mope.prune(encoder, importance, head_ratio=0.25, ffn_ratio=0.5, width_ratio=0.3, round_to=5)
    for layer in encoder.layers:
        was = 56 if layer.tower == "image" else 54
        assert layer.block.feed_forward.num_units == (was - share(0.5, was)) // 5 * 5
    for tower, was in (("image", 40), ("text", 36)):
        assert encoder.widths[tower] == (was - share(0.3, was)) // 5 * 5  # type: ignore[index]
    assert encoder.removed["image.heads"] == [1, 1, 1]


@pytest.mark.parametrize("criterion", ["mope", "random", "drowned"])
@pytest.mark.parametrize(("ratio", "steps"), [(0.5, 1), (0.5, 3), (0.72, 1)])
def test_round_to_under_global_pruning_removes_what_is_asked(criterion: str, ratio: float, steps: int) -> None:
    """Not even a layer whose neurons are the worst of all drops out, and no more goes than the rest of one chunk."""
    encoder = DualEncoder(clip())
    pairs = pairs_for(encoder.model, 8)
    if criterion == "drowned":
        with torch.no_grad():
            encoder.text.blocks[1].module.mlp.c_fc.weight.mul_(1e-3)  # type: ignore[union-attr, operator]
        magnitude = tp.importance.GroupMagnitudeImportance(normalizer=None)
        importance: Any = mope.WeightedImportance(encoder, [(magnitude, 1.0)])
    else:
        importance = importance_for(encoder, pairs, criterion)
    arguments: dict[str, Any] = {"ffn_ratio": ratio, "global_pruning": True, "round_to": 8, "iterative_steps": steps}
    pruner = tp.pruner.MetaPruner(encoder.model, importance=importance, **encoder.pruner_arguments(**arguments))
    for _ in range(steps):
        pruner.step()
    left = [layer.block.feed_forward.num_units for layer in encoder.layers]
    assert all(count in {56, 54} or (count % 8 == 0 and count >= 8) for count in left)
    assert share(ratio, 276) <= 276 - sum(left) < share(ratio, 276) + 8


def test_two_pruners_of_one_importance_round_as_each_is_asked(encoder: DualEncoder, pairs: mope.Pairs) -> None:
    importance = importance_for(encoder, pairs, "random")
    for multiple, most in ((16, 83 + 15), (None, 83 + 15 + share(0.3, 276 - 98))):
        before = encoder.counts().neurons
        removed = mope.prune(encoder, importance, ffn_ratio=0.3, global_pruning=True, round_to=multiple)
        assert removed.neurons == before - encoder.counts().neurons >= share(0.3, before)
        assert 276 - encoder.counts().neurons <= most


@pytest.mark.parametrize("global_pruning", [False, True])
def test_ignored_layers_stay(encoder: DualEncoder, pairs: mope.Pairs, global_pruning: bool) -> None:
    first, attention = encoder.image.blocks[0].module.mlp.c_fc, encoder.text.blocks[1].module.attn  # type: ignore[union-attr]
    removed = mope.prune(
        encoder,
        importance_for(encoder, pairs, "mope"),
        head_ratio=0.5,
        ffn_ratio=0.5,
        ignored_layers=[first, attention],
        global_pruning=global_pruning,
    )
    assert encoder.removed["image.neurons"][0] == 0
    assert encoder.removed["text.heads"][1] == 0
    if global_pruning:
        assert removed == Counts(heads=share(0.5, 15), neurons=share(0.5, 276 - 56))
    else:
        assert removed == Counts(heads=3 * 2 + 2, neurons=2 * 28 + 2 * 27)


def test_ratios_of_their_own(encoder: DualEncoder, pairs: mope.Pairs) -> None:
    first, second = (encoder.image.blocks[i].module.mlp.c_fc for i in (0, 1))  # type: ignore[union-attr]
    mope.prune(
        encoder, importance_for(encoder, pairs, "mope"), ffn_ratio=0.5, pruning_ratio_dict={first: 0.25, second: 0.0}
    )
    assert encoder.removed["image.neurons"] == [14, 0, 28]
    assert encoder.removed["text.neurons"] == [27, 27]


def test_a_ranking_scope_of_ones_own(encoder: DualEncoder, pairs: mope.Pairs) -> None:
    firsts = tuple(encoder.image.blocks[i].module.mlp.c_fc for i in (0, 1))  # type: ignore[union-attr]
    mope.prune(
        encoder,
        importance_for(encoder, pairs, "mope"),
        ffn_ratio=0.5,
        pruning_ratio_dict={firsts: 0.25},
        global_pruning=True,
    )
    removed = encoder.removed
    assert sum(removed["image.neurons"][:2]) == 28
    assert removed["image.neurons"][2] + sum(removed["text.neurons"]) == share(0.5, 56 + 2 * 54)


@pytest.mark.parametrize("tower", ["image", "text"])
def test_one_tower_alone(encoder: DualEncoder, pairs: mope.Pairs, tower: Any) -> None:
    other = "text" if tower == "image" else "image"
    inputs = pairs.images if other == "image" else pairs.tokens
    before = encoder.embed(other, inputs).detach()
    importance = importance_for(encoder, pairs, "mope")
    removed = mope.prune(encoder, importance, head_ratio=0.3, ffn_ratio=0.3, width_ratio=0.3, towers=(tower,))
    assert removed == (Counts(6, 51, 12) if tower == "image" else Counts(2, 34, 11))
    assert torch.equal(before, encoder.embed(other, inputs))


def test_nothing_asked_nothing_gone(encoder: DualEncoder, pairs: mope.Pairs) -> None:
    with unchanged(encoder.model):
        assert mope.prune(encoder, importance_for(encoder, pairs, "random")) == Counts()


# MetaPruner's own arguments, put in place of what pruner_arguments made.

ASKED = {"heads": 8, "neurons": 138, "widths": {"image": 40, "text": 36}}
"""Of head_ratio=0.3 and ffn_ratio=0.5, layer by layer."""
REFUSED = (ValueError, "must stay as pruner_arguments makes them; found a ratio of 0.5 in their place. Give head_ratio")
OVERRIDDEN: dict[str, tuple[Any, Any]] = {
    "global_pruning": (True, ASKED | {"heads": 6}),  # the ceiling of 0.3 of all 18 heads
    "iterative_steps": (2, ASKED),
    "round_to": (8, ASKED | {"neurons": 3 * 32 + 2 * 30}),
    "isomorphic": (True, ASKED),  # heads and neurons are ranked in scopes of their own
    "max_pruning_ratio": (0.2, ASKED | {"neurons": 3 * 12 + 2 * 11}),  # caps channels, not heads
    "pruning_ratio": (0.5, REFUSED),
    "ch_sparsity": (0.5, REFUSED),
    "pruning_ratio_dict": ("an MLP", REFUSED),
    "ch_sparsity_dict": ("an MLP", REFUSED),
    "head_pruning_ratio": (0.5, REFUSED),
    "head_pruning_ratio_dict": ("an MLP", REFUSED),
    "iterative_pruning_ratio_scheduler": (lambda ratio, steps: [0.0, *([ratio] * steps)], ASKED),
    "ignored_layers": ("an MLP", ASKED | {"neurons": 138 - 28}),
    "in_channel_groups": ({}, ASKED),
    "out_channel_groups": ({}, ASKED),
    "channel_groups": ({}, ASKED),
    "prune_num_heads": (False, ASKED | {"heads": 0}),
    "output_transform": (lambda outputs: outputs, ASKED),
    "root_module_types": ([torch.nn.Conv2d], ASKED | {"heads": 0, "neurons": 0}),
    "forward_fn": (lambda model, of: [model.encode_image(of["images"]), model.encode_text(of["tokens"])], ASKED),
    "example_inputs": ("two of each", ASKED),
    "unwrapped_parameters": ("the same", ASKED),
    # Without these, Torch-Pruning does not know what a head is, or is wrong on norms; pruner_arguments says so.
    "num_heads": ({}, RuntimeError),
    "prune_head_dims": (True, RuntimeError),
    "customized_pruners": (None, ASKED),
}


def test_every_argument_of_metapruner_is_in_the_table() -> None:
    assert OVERRIDDEN.keys() | {"self", "model", "importance"} == set(signature(tp.pruner.MetaPruner).parameters) | {
        "self"
    }


@pytest.mark.filterwarnings("ignore:ch_sparsity")
@pytest.mark.parametrize("name", OVERRIDDEN)
def test_overridden_arguments(encoder: DualEncoder, pairs: mope.Pairs, name: str) -> None:
    arguments = encoder.pruner_arguments(head_ratio=0.3, ffn_ratio=0.5)
    value, outcome = OVERRIDDEN[name]
    mlp = encoder.image.blocks[0].module.mlp.c_fc  # type: ignore[union-attr]
    if value == "an MLP":
        value = [mlp] if name == "ignored_layers" else {mlp: 0.5}
    elif value == "two of each":
        value = {key: inputs.repeat(2, *[1] * (inputs.ndim - 1)) for key, inputs in encoder.example_inputs.items()}
    elif value == "the same":
        value = list(arguments[name])
    arguments[name] = value
    criterion = tp.importance.GroupMagnitudeImportance()
    importance = mope.WeightedImportance(encoder, [(criterion, 1.0)], fallback=criterion)

    def build() -> Any:
        return tp.pruner.MetaPruner(encoder.model, importance=importance, **arguments)

    if isinstance(outcome, tuple):
        with unchanged(encoder.model), pytest.raises(outcome[0], match=re.escape(outcome[1])):
            build()
        return
    pruner = build()
    for _ in range(arguments["iterative_steps"]):
        pruner.step()
    if isinstance(outcome, type):
        with pytest.raises(outcome):
            encoder.embed("image", pairs.images)
        return
    gone = encoder.removed
    found = {
        kind: sum(sum(counts) for key, counts in gone.items() if key.endswith(kind)) for kind in ("heads", "neurons")
    }
    assert found | {"widths": encoder.widths} == outcome
    assert torch.isfinite(encoder.embed("image", pairs.images)).all()
    assert torch.isfinite(encoder.embed("text", pairs.tokens)).all()


def test_local_pruning_over_global_arguments(encoder: DualEncoder, pairs: mope.Pairs) -> None:
    arguments = encoder.pruner_arguments(head_ratio=0.3, ffn_ratio=0.5, global_pruning=True) | {"global_pruning": False}
    importance = importance_for(encoder, pairs, "random")
    tp.pruner.MetaPruner(encoder.model, importance=importance, **arguments).step()
    assert encoder.removed["image.neurons"] == [28, 28, 28]
    assert encoder.removed["image.heads"] == [2, 2, 2]


# The contract with Torch-Pruning.


def test_the_four_lines_of_the_contract() -> None:
    model, pairs = clip(), pairs_for(clip(), 10)
    encoder = mope.DualEncoder(model)
    importance = mope.MoPEImportance(encoder, pairs, metric="recall_mean")
    pruner = tp.pruner.MetaPruner(
        model, importance=importance, **encoder.pruner_arguments(head_ratio=0.3, ffn_ratio=0.5)
    )
    pruner.step()
    assert encoder.removed == {
        "image.heads": [2, 2, 2],
        "image.neurons": [28, 28, 28],
        "text.heads": [1, 1],
        "text.neurons": [27, 27],
    }
    assert encoder.widths == {"image": 40, "text": 36}
    assert type(pruner).__module__.startswith("torch_pruning.pruner")
    assert_trains(encoder, pairs)


def test_pruning_twice_counts_from_what_is_left(encoder: DualEncoder, pairs: mope.Pairs) -> None:
    for _ in range(2):
        importance = importance_for(encoder, pairs, "mope")
        mope.prune(encoder, importance, head_ratio=0.5, ffn_ratio=0.5, towers=("image",))
    assert encoder.removed["image.heads"] == [3, 3, 3]
    assert encoder.removed["image.neurons"] == [42, 42, 42]


def _pruner(encoder: DualEncoder, importance: Any, **ratios: Any) -> Any:
    return tp.pruner.MetaPruner(encoder.model, importance=importance, **encoder.pruner_arguments(**ratios))


def test_a_pruner_from_before_a_cut_is_refused(encoder: DualEncoder, pairs: mope.Pairs) -> None:
    """Its head counts are stale: two of four heads would be halves of the two that are left."""
    importance = importance_for(encoder, pairs, "random")
    first, second = (_pruner(encoder, importance, head_ratio=0.5, ffn_ratio=0.5, towers=("image",)) for _ in range(2))
    arguments = encoder.pruner_arguments(head_ratio=0.5)
    first.step()
    with (
        unchanged(encoder.model),
        pytest.raises(WrongModelError, match="model must be as it was when pruner_arguments was"),
    ):
        second.step()
    with unchanged(encoder.model), pytest.raises(WrongModelError, match="Call pruner_arguments anew"):
        tp.pruner.MetaPruner(encoder.model, importance=importance, **arguments)
    _pruner(encoder, importance, head_ratio=0.5, ffn_ratio=0.5, towers=("image",)).step()
    assert encoder.removed["image.heads"] == [3, 3, 3]


def test_pruners_of_two_models_take_turns(pairs: mope.Pairs) -> None:
    encoders = [DualEncoder(clip(seed=seed)) for seed in (0, 1)]
    pruners = [_pruner(e, importance_for(e, pairs, "mope"), head_ratio=0.5, iterative_steps=2) for e in encoders]
    for _ in range(2):
        for pruner in pruners:
            pruner.step()
    for encoder in encoders:
        assert encoder.removed["image.heads"] == [2, 2, 2]


@pytest.mark.filterwarnings("ignore:Unwrapped parameters")
def test_arguments_are_for_their_own_model(encoder: DualEncoder, pairs: mope.Pairs) -> None:
    twin = DualEncoder(copy.deepcopy(encoder.model))
    importance = importance_for(twin, pairs, "random")
    with (
        unchanged(twin.model),
        pytest.raises(WrongModelError, match="must be given the model that its arguments were made for; found another"),
    ):
        tp.pruner.MetaPruner(twin.model, importance=importance, **encoder.pruner_arguments(head_ratio=0.5))


def test_a_history_replays_on_another_copy(encoder: DualEncoder, pairs: mope.Pairs) -> None:
    fresh = DualEncoder(copy.deepcopy(encoder.model))
    pruner = tp.pruner.MetaPruner(
        encoder.model,
        importance=importance_for(encoder, pairs, "mope"),
        **encoder.pruner_arguments(head_ratio=0.5, ffn_ratio=0.5, width_ratio=0.7),
    )
    pruner.step()
    fresh.dependency_graph().load_pruning_history(pruner.pruning_history())
    assert {k: v.shape for k, v in fresh.model.state_dict().items()} == {
        k: v.shape for k, v in encoder.model.state_dict().items()
    }
    with torch.no_grad():
        assert torch.equal(fresh.embed("image", pairs.images), encoder.embed("image", pairs.images))


def test_pruned_state_dicts_load_into_pruned_models(encoder: DualEncoder, pairs: mope.Pairs) -> None:
    other = DualEncoder(copy.deepcopy(encoder.model))
    for each in (encoder, other):
        torch.manual_seed(3)
        mope.prune(each, importance_for(each, pairs, "random"), head_ratio=0.5, ffn_ratio=0.5)
    with torch.no_grad():
        other.model.visual.conv1.weight.zero_()
        other.model.load_state_dict(encoder.model.state_dict(), strict=True)
        assert torch.equal(other.embed("image", pairs.images), encoder.embed("image", pairs.images))
