"""Masked, engine and physical removal agree on every unit, in every form of open_clip model."""

import random
from typing import Any

import pytest
import torch

import torch_pruning_mope as mope
from tests.asserts import assert_close, unchanged
from tests.unit.models import clip, pairs_for
from tests.unit.scoring.oracle import embeddings, physically_without
from tests.unit.towers.test_open_clip import CASES, OPAQUE
from torch_pruning_mope.scoring import (
    Ablation,
    Ablator,
    PlainEngine,
    PrefixEngine,
    enumerate_units,
    nested_ablations,
    single_ablation,
)
from torch_pruning_mope.scoring._walk import StreamWalk

GROUPS = 3
EACH: list[Any] = [
    (case, tower)
    for case, form in CASES.items()
    for tower, own, other in (("image", "vision", "text"), ("text", "text", "vision"))
    if own in form or other not in form
]
"""But for towers that are those of the plain case."""


REMOVED = {
    "plain",
    "layer scale",
    "average pool",
    "custom blocks",
    "norms of queries and keys",
    "scaled heads",
    *OPAQUE,
}


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


@pytest.mark.parametrize(("case", "tower"), EACH)
def test_engine_equals_plain_loop(case: str, tower: str) -> None:
    encoder = mope.DualEncoder(clip(**CASES[case]))
    pairs = pairs_for(encoder.model, 7)
    inputs = pairs.images if tower == "image" else pairs.tokens
    with unchanged(encoder.model):
        plain = _collect(plain_ablations, encoder, tower, inputs, 4)
        # Several chunks of inputs, or several ablations at once.
        for batch_size in (3, 40) if case == "plain" else (3,) if tower == "image" else (40,):
            for ablation, values in _collect(prefix_ablations, encoder, tower, inputs, batch_size).items():
                assert_close(values, plain[ablation], 1e-5)


@pytest.mark.parametrize(("case", "tower"), [each for each in EACH if each[0] in REMOVED])
def test_masked_equals_physically_pruned(case: str, tower: str) -> None:
    encoder = mope.DualEncoder(clip(**CASES[case]))
    pairs = pairs_for(encoder.model, 5)
    inputs = pairs.images if tower == "image" else pairs.tokens
    dense = embeddings(encoder, tower, inputs)
    last = len(encoder.towers[tower].blocks) - 1  # type: ignore[index]
    for ablation, values in _collect(plain_ablations, encoder, tower, inputs, 5).items():
        if ablation.layer not in {0, last}:
            continue
        expected = embeddings(physically_without(encoder, ablation), tower, inputs)
        assert_close(values, expected, 1e-5)
        assert not torch.allclose(values, dense, rtol=1e-4)


@pytest.mark.parametrize(("case", "tower"), EACH)
def test_only_norms_over_the_units_call_for_physical_removal(case: str, tower: Any) -> None:
    encoder = mope.DualEncoder(clip(**CASES[case]))
    layers = range(len(encoder.towers[tower].blocks))
    kind = {"inner norm of attention": "head", "inner norm of the MLP": "neurons"}.get(case)
    ablator = Ablator(encoder)
    assert {place for place in ablator.physical if place[0] == tower} == {(tower, i, kind) for i in layers if kind}
    assert ablator.is_masked(tower) == (kind is None)


def test_masking_ends_with_its_context(encoder: mope.DualEncoder, pairs: mope.Pairs) -> None:
    ablator = Ablator(encoder)
    for ablation in _ablations(encoder, "image")[:8]:
        with unchanged(encoder.model):
            dense = embeddings(encoder, "image", pairs.images)
            with pytest.raises(KeyError), ablator.without("image", [ablation]) as without:  # noqa: PT012
                assert without is encoder
                assert not torch.equal(embeddings(encoder, "image", pairs.images), dense)
                raise KeyError
        assert torch.equal(embeddings(encoder, "image", pairs.images), dense)


@pytest.mark.parametrize("case", ["inner norm of attention", "inner norm of the MLP"])
def test_physical_removal_ends_with_its_context(case: str) -> None:
    """It is from a copy; the model itself never changes."""
    encoder = mope.DualEncoder(clip(**CASES[case]))
    images = pairs_for(encoder.model, 3).images
    dense = embeddings(encoder, "image", images)
    ablator = Ablator(encoder)
    for ablation in [each for each in _ablations(encoder, "image") if each.part != "block"][:8]:
        physical = ("image", ablation.layer, ablation.part) in ablator.physical
        removal = ablator.without("image", [ablation])
        with unchanged(encoder.model), pytest.raises(KeyError), removal as without:  # noqa: PT012
            assert (without is encoder) != physical
            assert not torch.equal(embeddings(without, "image", images), dense)
            if physical:
                assert torch.equal(embeddings(encoder, "image", images), dense)
            raise KeyError
        with ablator.without("image", []) as restored:
            assert torch.equal(embeddings(restored, "image", images), dense)
        assert torch.equal(embeddings(without, "image", images), dense)


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
        mope.towers.Stream(stream.x, torch.zeros(10, 10)).pooled_mask()


@pytest.mark.parametrize("tower", ["image", "text"])
def test_engine_after_pruning(encoder: mope.DualEncoder, pairs: mope.Pairs, tower: str) -> None:
    """Layers of different widths, as global pruning leaves them."""
    for ablation in (Ablation("image", 0, "head", tuple(range(20))), Ablation("text", 1, "neurons", tuple(range(11)))):
        encoder = physically_without(encoder, ablation)
    inputs = pairs.images if tower == "image" else pairs.tokens
    plain = _collect(plain_ablations, encoder, tower, inputs, 4)
    for ablation, values in _collect(prefix_ablations, encoder, tower, inputs, 30).items():
        assert_close(values, plain[ablation], 1e-5)


@pytest.mark.parametrize("tower", ["image", "text"])
def test_less_memory_gives_the_same_bits(tower: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is recorded or computed again; the least budget is the one that the refusal names."""
    encoder = mope.DualEncoder(clip())
    pairs = pairs_for(encoder.model, 24)
    inputs = pairs.images if tower == "image" else pairs.tokens
    ablations = _ablations(encoder, tower)
    with pytest.raises(
        ValueError, match=r"memory must be at least (\d+) bytes for batch_size=4; found 1000"
    ) as refusal:
        next(PrefixEngine(encoder, batch_size=4, memory=1000).ablations(tower, inputs, ablations))
    least = int(str(refusal.value).split()[5])
    steps: list[int] = []
    step = StreamWalk.step
    monkeypatch.setattr(
        StreamWalk, "step", lambda self, depth, stream: (steps.append(depth), step(self, depth, stream))[1]
    )
    results, work = [], []
    for memory in (least, least + 30_000, least + 100_000, 1 << 30):
        steps.clear()
        engine = PrefixEngine(encoder, batch_size=4, memory=memory)
        found = {tuple(batch): values for batch, values in engine.ablations(tower, inputs, ablations)}
        results.append(found)
        work.append(len(steps))
        assert engine._budget.left == memory - engine._workspace  # everything has been handed back
    for found in results[1:]:
        assert found.keys() == results[0].keys()
        assert all(torch.equal(values, results[0][batch]) for batch, values in found.items())
    assert work == sorted(work, reverse=True)
    assert work[0] > 1.2 * work[-1]


def test_a_batch_size_is_found_for_little_memory(encoder: mope.DualEncoder) -> None:
    pairs = pairs_for(encoder.model, 24)
    with pytest.raises(ValueError, match="memory must be at least") as refusal:
        PrefixEngine(encoder, memory=1, batch_size=2).embeddings("image", pairs.images)
    least = int(str(refusal.value).split()[5])
    values = PrefixEngine(encoder, memory=least).embeddings("image", pairs.images)
    assert_close(values, embeddings(encoder, "image", pairs.images), 1e-5)


@pytest.mark.parametrize("memory", [None, "tight"])
@pytest.mark.parametrize("tower", ["image", "text"])
def test_kept_streams_follow_what_is_removed(encoder: mope.DualEncoder, tower: Any, memory: str | None) -> None:
    """Units come and go in any order, as in a greedy search; every answer is the plain loop's."""
    pairs = pairs_for(encoder.model, 10)
    inputs = pairs.images if tower == "image" else pairs.tokens
    budget = None
    if memory:
        with pytest.raises(ValueError, match="memory must be at least") as refusal:
            PrefixEngine(encoder, memory=1, batch_size=4).embeddings(tower, inputs)
        budget = int(str(refusal.value).split()[5]) + 20_000
    engine = PrefixEngine(encoder, batch_size=4, memory=budget, keep=True)
    plain = PlainEngine(encoder)
    units = enumerate_units(encoder, ("head", "neurons", "block"), {}, GROUPS, (tower,))
    rng = random.Random(0)
    held: list[Ablation] = []
    for _ in range(12):
        candidates = [single_ablation(unit) for unit in units if single_ablation(unit) not in held]
        tried = [c for c in rng.sample(candidates, 3) if not _inside(c, held)]
        for batch, values in engine.ablations(tower, inputs, tried, held):
            for position, value in zip(batch, values, strict=True):
                assert_close(value, plain.embeddings(tower, inputs, [*held, tried[position]]), 1e-5)
        assert_close(engine.embeddings(tower, inputs, held), plain.embeddings(tower, inputs, held), 1e-5)
        if rng.random() < 0.7 and tried:
            held = [*held, tried[0]]
        elif held:
            held.pop(rng.randrange(len(held)))


def _inside(ablation: Ablation, held: list[Ablation]) -> bool:
    """True if its block is gone already."""
    return any(other.part == "block" and other.layer == ablation.layer for other in held)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_the_plain_loops_within_its_precision(encoder: mope.DualEncoder, dtype: torch.dtype) -> None:
    pairs = pairs_for(encoder.model, 6)
    ablations = _ablations(encoder, "image")
    full = dict(_values(PrefixEngine(encoder).ablations("image", pairs.images, ablations)))
    plain = dict(_values(PlainEngine(encoder, dtype=dtype).ablations("image", pairs.images, ablations)))
    for position, values in _values(PrefixEngine(encoder, dtype=dtype).ablations("image", pairs.images, ablations)):
        scale = full[position].norm(dim=-1).mean()
        assert (values.float() - full[position]).norm(dim=-1).mean() / scale < 0.03
        assert (values.float() - plain[position].float()).norm(dim=-1).mean() / scale < 0.03
        assert not torch.equal(values.float(), full[position])


def _values(results: Any) -> Any:
    for batch, values in results:
        yield from zip(batch, values, strict=True)
