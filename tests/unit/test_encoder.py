"""DualEncoder: what it reports, what it removes, what it refuses."""

import copy
from typing import Any

import pytest
import torch
import torch_pruning as tp

import torch_pruning_mope as mope
from tests.asserts import assert_close, assert_trains, unchanged, unchecked
from tests.unit.models import clip
from torch_pruning_mope import Counts, DualEncoder, NonFiniteError


def test_counts_and_widths(encoder: DualEncoder) -> None:
    assert encoder.counts() == Counts(heads=3 * 4 + 2 * 3, neurons=3 * 56 + 2 * 54, width=40 + 36)
    assert encoder.widths == {"image": 40, "text": 36}
    assert [(layer.tower, layer.index) for layer in encoder.layers] == [
        ("image", 0),
        ("image", 1),
        ("image", 2),
        ("text", 0),
        ("text", 1),
    ]
    assert encoder.removed == {
        "image.heads": [0] * 3,
        "image.neurons": [0] * 3,
        "text.heads": [0] * 2,
        "text.neurons": [0] * 2,
    }


def test_example_inputs_fit(encoder: DualEncoder) -> None:
    inputs = encoder.example_inputs
    assert (inputs["images"].shape, inputs["tokens"].shape) == ((1, 3, 24, 24), (1, 9))
    assert encoder.embed("image", inputs["images"]).shape == encoder.embed("text", inputs["tokens"]).shape == (1, 28)


def test_logit_scale(encoder: DualEncoder) -> None:
    assert float(torch.as_tensor(encoder.logit_scale).detach()) == pytest.approx(1 / 0.07, rel=1e-5)
    vector = DualEncoder(clip(nonscalar_logit_scale=True))
    assert torch.as_tensor(vector.logit_scale).shape == ()


@pytest.mark.parametrize("indices", [[0], [2], [0, 1], [2, 0]])
def test_blocks_go(encoder: DualEncoder, pairs: mope.Pairs, indices: list[int]) -> None:
    """Against a model that skips them."""
    twin = copy.deepcopy(encoder.model)
    for index in indices:
        twin.visual.transformer.resblocks[index].register_forward_hook(lambda _m, args, _o: args[0])
    encoder.remove_blocks("image", indices)
    assert len(encoder.image.blocks) == 3 - len(indices)
    with torch.no_grad():
        assert_close(encoder.embed("image", pairs.images), twin.encode_image(pairs.images), 1e-6)
    assert encoder.removed["image.heads"] == [0] * (3 - len(indices)) + [4] * len(indices)
    assert encoder.removed["image.neurons"] == [0] * (3 - len(indices)) + [56] * len(indices)
    encoder.remove_blocks("text", [1])
    assert_trains(encoder, pairs)


def test_blocks_and_units_go_together(encoder: DualEncoder, pairs: mope.Pairs) -> None:
    encoder.remove_blocks("image", [1])
    importance = mope.MoPEImportance(
        encoder, pairs, groups=3, progress=False, fallback=tp.importance.GroupMagnitudeImportance()
    )
    removed = mope.prune(encoder, importance, head_ratio=0.5, ffn_ratio=0.5, width_ratio=0.2, global_pruning=True)
    assert removed == Counts(heads=7, neurons=110, width=16)
    assert_trains(encoder, pairs)


@pytest.mark.parametrize("indices", [[3], [-1], [0, 0], [0, 1, 2]])
def test_impossible_blocks_are_refused(encoder: DualEncoder, indices: list[int]) -> None:
    with unchanged(encoder.model), pytest.raises(ValueError, match="indices must name some, not all, of the 3 layers"):
        encoder.remove_blocks("image", indices)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_no_numbers_are_refused(bad: float) -> None:
    model = clip()
    with torch.no_grad():
        model.visual.proj[3, 3] = bad
        model.ln_final.bias[0] = bad
    with (
        unchanged(model),
        pytest.raises(
            NonFiniteError, match=r"found NaN or infinity in \['visual.proj', 'ln_final.bias'\] \(2 in all\)"
        ),
    ):
        DualEncoder(model)


def test_models_without_weights_are_counted_but_not_scored(pairs: mope.Pairs) -> None:
    encoder, real = DualEncoder(clip().to("meta")), DualEncoder(clip())
    assert encoder.counts() == real.counts()
    arguments = encoder.pruner_arguments(head_ratio=0.5, ffn_ratio=0.5)
    assert arguments.keys() == real.pruner_arguments(head_ratio=0.5, ffn_ratio=0.5).keys()
    for use in (lambda: mope.score(encoder, pairs), lambda: encoder.accumulate_gradients(pairs)):
        with (
            unchanged(encoder.model),
            pytest.raises(ValueError, match=r"found some on the 'meta' device\. Load a checkpoint first"),
        ):
            use()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_pruners_need_autograd(encoder: DualEncoder, mode: Any) -> None:
    with unchanged(encoder.model), mode(), pytest.raises(RuntimeError, match="must be called with autograd on"):
        encoder.pruner_arguments(head_ratio=0.5)


def test_wrapping_under_no_grad_keeps_weights_trainable() -> None:
    with torch.no_grad():
        encoder = DualEncoder(clip())
    assert all(parameter.requires_grad for parameter in encoder.model.parameters())


def test_arguments_leave_the_model_as_it_is(encoder: DualEncoder) -> None:
    encoder.model.train()
    encoder.model.visual.requires_grad_(False)
    with unchanged(encoder.model):
        arguments = encoder.pruner_arguments(head_ratio=0.5, ffn_ratio=0.5, width_ratio=0.2)
        tp.pruner.MetaPruner(encoder.model, importance=lambda group: None, **arguments)


def test_pruning_keeps_training_modes(encoder: DualEncoder, pairs: mope.Pairs) -> None:
    encoder.model.train()
    encoder.model.visual.eval()
    modes = {name: module.training for name, module in encoder.model.named_modules()}
    mope.prune(encoder, mope.MoPEImportance(encoder, pairs, groups=2, progress=False), head_ratio=0.5)
    assert {name: module.training for name, module in encoder.model.named_modules()} == modes


def test_wrapping_keeps_training_modes_and_requires_grad() -> None:
    model = clip().train()
    model.visual.requires_grad_(False).eval()
    DualEncoder(model)
    assert model.training
    assert not any(module.training for module in model.visual.modules())
    assert not any(parameter.requires_grad for parameter in model.visual.parameters())
    assert all(parameter.requires_grad for parameter in model.transformer.parameters())


def test_other_towers_are_refused(encoder: DualEncoder) -> None:
    with pytest.raises(KeyError):
        unchecked(DualEncoder.remove_blocks)(encoder, "audio", [0])


def test_copies_are_independent(encoder: DualEncoder, pairs: mope.Pairs) -> None:
    """A deepcopy of a wrapped model wraps again."""
    twin = DualEncoder(copy.deepcopy(encoder.model))
    mope.prune(twin, mope.MoPEImportance(twin, pairs, groups=2, progress=False), head_ratio=0.5)
    assert encoder.removed["image.heads"] == [0, 0, 0]
    assert twin.removed["image.heads"] == [2, 2, 2]
