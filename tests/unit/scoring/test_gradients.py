"""Gradients over calibration pairs against autograd written out, and the trap that they go round."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch_pruning as tp
from torch import Tensor, nn

import torch_pruning_mope as mope
from tests.asserts import assert_close, unchanged
from tests.unit.models import clip, pairs_for
from torch_pruning_mope import DualEncoder
from torch_pruning_mope.errors import NonFiniteError
from torch_pruning_mope.scoring import batch_losses


def _losses(model: Any, images: Tensor, tokens: Tensor) -> Tensor:
    image, text = F.normalize(model.encode_image(images), dim=-1), F.normalize(model.encode_text(tokens), dim=-1)
    logits, labels = model.logit_scale.exp() * image @ text.T, torch.arange(len(images))
    return (F.cross_entropy(logits, labels, reduction="none") + F.cross_entropy(logits.T, labels, reduction="none")) / 2


def _gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("batch_size", [3, 6, 64])
def test_mean_gradients(encoder: DualEncoder, pairs: mope.Pairs, batch_size: int) -> None:
    twin = copy.deepcopy(encoder.model)
    encoder.accumulate_gradients(pairs, batch_size=batch_size)
    for start in range(0, 12, batch_size):
        part = slice(start, start + batch_size)
        (_losses(twin, pairs.images[part], pairs.tokens[part]).sum() / 12).backward()
    found, expected = _gradients(encoder.model), _gradients(twin)
    assert found.keys() == expected.keys() == dict(twin.named_parameters()).keys()
    for name, gradient in expected.items():
        if float(gradient.abs().max()) > 1e-6:  # a key's bias has none but rounding
            assert_close(found[name], gradient, 1e-4)
        else:
            assert float(found[name].abs().max()) < 1e-5


@pytest.mark.parametrize("batch_size", [4, 64])
def test_squared_gradients_are_the_mean_of_each_pairs_own(
    encoder: DualEncoder, pairs: mope.Pairs, batch_size: int
) -> None:
    """A pair's own gradient: of its batch's summed loss, through its own image and caption alone."""
    twin = copy.deepcopy(encoder.model)
    encoder.accumulate_gradients(pairs, squared=True, batch_size=batch_size)
    sums: dict[str, Tensor] = {}
    for start in range(0, 12, batch_size):
        images, tokens = (x[start : start + batch_size] for x in (pairs.images, pairs.tokens))
        for n in range(len(images)):
            twin.zero_grad()
            image, text = twin.encode_image(images), twin.encode_text(tokens)
            mine = torch.arange(len(images)) == n
            image, text = (torch.where(mine[:, None], x, x.detach()) for x in (image, text))
            image, text = F.normalize(image, dim=-1), F.normalize(text, dim=-1)
            logits, labels = twin.logit_scale.exp().detach() * image @ text.T, torch.arange(len(images))
            ((F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2 * len(images)).backward()
            for name, gradient in _gradients(twin).items():
                sums[name] = sums.get(name, torch.zeros_like(gradient)) + gradient**2 / 12
    found = _gradients(encoder.model)
    for name, expected in sums.items():
        if name != "logit_scale" and float(expected.max()) > 1e-9:
            assert_close(found[name], expected, 1e-3)


def test_hessian_importance_reads_them(encoder: DualEncoder, pairs: mope.Pairs) -> None:
    """Torch-Pruning reads from .grad the squared gradient itself: twice the gradient, twice the score."""
    encoder.accumulate_gradients(pairs, squared=True)
    group = encoder.dependency_graph().get_pruning_group(
        encoder.image.blocks[0].module.mlp.c_fc,
        tp.prune_linear_out_channels,
        list(range(56)),  # type: ignore[union-attr]
    )
    criterion = tp.importance.GroupHessianImportance(normalizer=None)
    before = criterion(group).clone()
    for parameter in encoder.model.parameters():
        parameter.grad *= 2  # type: ignore[operator]
    assert_close(criterion(group), 2 * before, 1e-6)
    mlp = encoder.image.blocks[0].module.mlp
    terms = [(mlp.c_fc.weight, 1), (mlp.c_proj.weight, 0)]  # type: ignore[union-attr]
    expected = torch.stack([(p**2 * p.grad / 2).sum(dim) for p, dim in terms]).mean(0)  # type: ignore[operator]
    assert_close(before, expected, 1e-5)


def test_hessian_accumulation_canary() -> None:
    """Torch-Pruning's own accumulate_grad looks up by name what it stores by parameter: only the last sample stays."""
    model = nn.Linear(2, 1, bias=False)
    criterion = tp.importance.GroupHessianImportance()
    for value in (1.0, 2.0, 3.0):
        model.weight.grad = torch.full_like(model.weight, value)
        criterion.accumulate_grad(model)
    assert criterion._accu_grad[model.weight].tolist() == [[9.0, 9.0]]  # not 14


@pytest.mark.parametrize("squared", [False, True])
def test_frozen_training_and_no_grad_are_as_they_were(encoder: DualEncoder, pairs: mope.Pairs, squared: bool) -> None:
    expected = DualEncoder(copy.deepcopy(encoder.model))
    expected.accumulate_gradients(pairs, squared=squared)
    encoder.model.visual.requires_grad_(False)
    encoder.model.train()
    encoder.model.visual.eval()
    flags = [(module.training) for module in encoder.model.modules()]
    grads = [p.requires_grad for p in encoder.model.parameters()]
    with torch.no_grad():
        encoder.accumulate_gradients(pairs, squared=squared)
        assert not torch.is_grad_enabled()
    assert [module.training for module in encoder.model.modules()] == flags
    assert [p.requires_grad for p in encoder.model.parameters()] == grads
    for name, gradient in _gradients(expected.model).items():
        assert torch.equal(_gradients(encoder.model)[name], gradient)


@pytest.mark.parametrize("squared", [False, True])
def test_a_second_call_replaces_the_first(encoder: DualEncoder, pairs: mope.Pairs, squared: bool) -> None:
    encoder.accumulate_gradients(pairs, squared=squared)
    first = {name: g.clone() for name, g in _gradients(encoder.model).items()}
    encoder.accumulate_gradients(pairs, squared=squared)
    assert all(torch.equal(first[name], g) for name, g in _gradients(encoder.model).items())


def test_a_lone_last_pair_is_left_out(encoder: DualEncoder) -> None:
    pairs = pairs_for(encoder.model, 9)
    encoder.accumulate_gradients(pairs, batch_size=4)
    found = {name: g.clone() for name, g in _gradients(encoder.model).items()}
    encoder.accumulate_gradients(mope.Pairs(pairs.images[:8], pairs.tokens[:8]), batch_size=4)
    for name, gradient in _gradients(encoder.model).items():
        cosine = F.cosine_similarity(found[name].flatten(), gradient.flatten(), dim=0)
        assert float(gradient.abs().max()) < 1e-6 or float(cosine) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.filterwarnings("ignore")
def test_no_numbers_leave_the_gradients_as_they_were(encoder: DualEncoder, pairs: mope.Pairs, squared: bool) -> None:
    encoder.accumulate_gradients(pairs)
    with torch.no_grad():
        encoder.model.visual.proj[0, 0] = torch.nan
    with unchanged(encoder.model), pytest.raises(NonFiniteError, match="must be finite; found NaN"):
        encoder.accumulate_gradients(pairs, squared=squared)


@pytest.mark.parametrize("batch_size", [0, 1])
def test_a_batch_must_contrast(encoder: DualEncoder, pairs: mope.Pairs, batch_size: int) -> None:
    with (
        unchanged(encoder.model),
        pytest.raises(ValueError, match=f"batch_size must be at least 2.*found {batch_size}"),
    ):
        encoder.accumulate_gradients(pairs, batch_size=batch_size)


def test_several_captions_take_the_first_of_each_image() -> None:
    encoder = DualEncoder(clip())
    pairs = pairs_for(encoder.model, 6, captions=3)
    encoder.accumulate_gradients(pairs)
    found = {name: g.clone() for name, g in _gradients(encoder.model).items()}
    index = pairs.image_index.tolist()
    encoder.accumulate_gradients(mope.Pairs(pairs.images, pairs.tokens[[index.index(i) for i in range(6)]]))
    assert all(torch.equal(found[name], g) for name, g in _gradients(encoder.model).items())


def test_batch_losses(encoder: DualEncoder, pairs: mope.Pairs) -> None:
    found = batch_losses(encoder, pairs.images, pairs.tokens)
    assert_close(found, _losses(encoder.model, pairs.images, pairs.tokens), 1e-5)


def test_models_without_a_temperature_parameter_have_gradients(pairs: mope.Pairs) -> None:
    model = clip(nonscalar_logit_scale=True, init_logit_bias=-3.0)
    encoder = DualEncoder(model)
    encoder.accumulate_gradients(pairs)
    assert model.logit_bias.grad.tolist() == [0.0]  # it cancels in the loss, and counts as zero
    assert float(model.logit_scale.grad.abs()) > 0
