"""Masked, engine and physical removal agree on every unit, in every form of open_clip model."""

from typing import Any

import pytest
import torch

import torch_pruning_mope as mope
from tests.asserts import assert_close, unchanged
from tests.unit.models import clip, pairs_for
from tests.unit.scoring.oracle import embeddings, physically_without
from tests.unit.towers.test_open_clip import CASES
from torch_pruning_mope.scoring import (
    Ablation,
    PlainEngine,
    PrefixEngine,
    enumerate_units,
    masked,
    nested_ablations,
    single_ablation,
)

GROUPS = 3


def plain_ablations(encoder: mope.DualEncoder, tower: Any, inputs: Any, ablations: Any, batch_size: int) -> Any:
    return PlainEngine(encoder, batch_size=batch_size).ablations(tower, inputs, ablations)


def prefix_ablations(encoder: mope.DualEncoder, tower: Any, inputs: Any, ablations: Any, batch_size: int) -> Any:
    return PrefixEngine(encoder, batch_size=batch_size).ablations(tower, inputs, ablations)


def dense_embeddings(encoder: mope.DualEncoder, tower: Any, inputs: Any, batch_size: int) -> Any:
    return PrefixEngine(encoder, batch_size=batch_size).embeddings(tower, inputs)


def _ablations(encoder: mope.DualEncoder, tower: str) -> list[Ablation]:
    """Every head, neuron group and block alone, and every nest of groups up to the whole MLP."""
    units = enumerate_units(encoder, ("head", "neurons", "block"), {}, GROUPS, (tower,))
    ablations = [single_ablation(unit) for unit in units]
    for layer in range(len(encoder.towers[tower].blocks)):  # type: ignore[index]
        ablations += nested_ablations([u for u in units if u.kind == "neurons" and u.layer == layer])
    return ablations


def _collect(run: Any, encoder: mope.DualEncoder, tower: str, inputs: Any, batch_size: int) -> dict[Ablation, Any]:
    ablations = _ablations(encoder, tower)
    found: dict[int, Any] = {}
    for positions, values in run(encoder, tower, inputs, ablations, batch_size):
        assert len(positions) == len(values)
        assert not found.keys() & set(positions)
        found |= dict(zip(positions, values, strict=True))
    assert len(found) == len(ablations)
    return {ablation: found[i] for i, ablation in enumerate(ablations)}


@pytest.mark.parametrize("tower", ["image", "text"])
@pytest.mark.parametrize("case", CASES)
def test_engine_equals_plain_loop(case: str, tower: str) -> None:
    encoder = mope.DualEncoder(clip(**CASES[case]))
    pairs = pairs_for(encoder.model, 7)
    inputs = pairs.images if tower == "image" else pairs.tokens
    with unchanged(encoder.model):
        plain = _collect(plain_ablations, encoder, tower, inputs, 4)
        for batch_size in (3, 40):
            for ablation, values in _collect(prefix_ablations, encoder, tower, inputs, batch_size).items():
                assert_close(values, plain[ablation], 1e-5)


@pytest.mark.parametrize("tower", ["image", "text"])
@pytest.mark.parametrize("case", ["plain", "layer scale", "average pool", "custom blocks"])
def test_masked_equals_physically_pruned(case: str, tower: str) -> None:
    encoder = mope.DualEncoder(clip(**CASES[case]))
    pairs = pairs_for(encoder.model, 5)
    inputs = pairs.images if tower == "image" else pairs.tokens
    dense = embeddings(encoder, tower, inputs)
    for ablation, values in _collect(plain_ablations, encoder, tower, inputs, 5).items():
        expected = embeddings(physically_without(encoder, ablation), tower, inputs)
        assert_close(values, expected, 1e-5)
        assert not torch.allclose(values, dense, rtol=1e-4)


def test_masking_ends_with_its_context(encoder: mope.DualEncoder, pairs: mope.Pairs) -> None:
    for ablation in _ablations(encoder, "image")[:8]:
        with unchanged(encoder.model):
            dense = embeddings(encoder, "image", pairs.images)
            with pytest.raises(KeyError), masked(encoder, ablation):  # noqa: PT012
                assert not torch.equal(embeddings(encoder, "image", pairs.images), dense)
                raise KeyError
        assert torch.equal(embeddings(encoder, "image", pairs.images), dense)


@pytest.mark.parametrize("run", [prefix_ablations, plain_ablations])
@pytest.mark.parametrize("tower", ["image", "text"])
def test_an_abandoned_generator_leaves_nothing_behind(
    encoder: mope.DualEncoder, pairs: mope.Pairs, run: Any, tower: str
) -> None:
    encoder.model.train()
    inputs = pairs.images if tower == "image" else pairs.tokens
    with unchanged(encoder.model):
        generator = run(encoder, tower, inputs, _ablations(encoder, tower), 4)
        next(generator)
        next(generator)
        # Between two results the model is the caller's.
        assert encoder.model.training
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
        del generator


def test_dense_embeddings_follow_the_order_of_the_inputs(encoder: mope.DualEncoder) -> None:
    """The engine sorts captions by length inside."""
    tokens = pairs_for(encoder.model, 9).tokens[torch.randperm(9)]
    expected = embeddings(encoder, "text", tokens)
    for batch_size in (1, 2, 4, 9):
        assert_close(dense_embeddings(encoder, "text", tokens, batch_size), expected, 1e-5)


def test_the_engine_cuts_captions(encoder: mope.DualEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the test above would pass without the code under test."""
    lengths: list[int] = []
    stem = type(encoder.text).stem

    def spy(self: Any, inputs: Any) -> Any:
        lengths.append(inputs.shape[1])
        return stem(self, inputs)

    monkeypatch.setattr(type(encoder.text), "stem", spy)
    tokens = pairs_for(encoder.model, 7).tokens
    dense_embeddings(encoder, "text", tokens, 1)
    assert lengths[-7:] == [3, 4, 5, 6, 7, 8, 9]  # after a look at how much memory the longest needs


def test_the_last_layer_computes_only_the_pooled_token(encoder: mope.DualEncoder, pairs: mope.Pairs) -> None:
    shapes: list[int] = []
    block = encoder.image.blocks[-1].module
    handles = [
        module.register_forward_hook(lambda _m, inputs, _o: shapes.append(inputs[0].shape[1]))
        for module in (block.mlp.c_fc, block.attn.q_proj, block.attn.k_proj)  # type: ignore[union-attr]
    ]
    dense_embeddings(encoder, "image", pairs.images, 64)
    for handle in handles:
        handle.remove()
    assert sorted(shapes[-3:]) == [1, 1, 10]


def test_the_image_pooling_its_average_computes_all_tokens() -> None:
    encoder = mope.DualEncoder(clip(vision={"pool_type": "avg"}))
    stream = encoder.image.stem(pairs_for(encoder.model, 3).images)
    assert stream.pooled is None
    assert stream.narrow() is stream
    with pytest.raises(ValueError, match="pooled must name one token per sequence; found None"):
        mope.Stream(stream.x, torch.zeros(10, 10)).pooled_mask()


@pytest.mark.parametrize("tower", ["image", "text"])
def test_engine_after_pruning(encoder: mope.DualEncoder, pairs: mope.Pairs, tower: str) -> None:
    """Layers of different widths, as global pruning leaves them."""
    for ablation in (Ablation("image", 0, "head", tuple(range(20))), Ablation("text", 1, "neurons", tuple(range(11)))):
        encoder = physically_without(encoder, ablation)
    inputs = pairs.images if tower == "image" else pairs.tokens
    plain = _collect(plain_ablations, encoder, tower, inputs, 4)
    for ablation, values in _collect(prefix_ablations, encoder, tower, inputs, 30).items():
        assert_close(values, plain[ablation], 1e-5)
