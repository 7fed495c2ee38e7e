"""Reconstruction: what it costs, what it leaves alone, what it refuses, and that memory and processes change nothing."""

import copy
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torch_pruning_mope as mope
from tests.asserts import assert_close, unchanged, unchecked
from tests.unit.models import VISION, clip, pairs_for
from tests.unit.ranks import run_ranks
from tests.unit.zoo import build, pairs_of
from torch_pruning_mope import DualEncoder, Pairs
from torch_pruning_mope.errors import NonFiniteError, WrongModelError
from torch_pruning_mope.reconstruction import _reconstruct

from . import reconstruct_in_ranks
from .oracle import cut, pruned, reconstruct_slowly

ROOT = Path(__file__).parents[3]


@pytest.fixture
def dense() -> DualEncoder:
    return DualEncoder(clip())


@pytest.fixture
def student(dense: DualEncoder) -> DualEncoder:
    smaller = DualEncoder(copy.deepcopy(dense.model))
    cut(smaller)
    return smaller


def embeddings(encoder: DualEncoder, pairs: Pairs) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        return encoder.embed("image", pairs.images), encoder.embed("text", pairs.tokens)


def test_model_that_was_not_cut_is_left_alone(dense: DualEncoder, pairs: Pairs) -> None:
    same = DualEncoder(copy.deepcopy(dense.model))
    with unchanged(same.model):
        report = mope.reconstruct(same, dense, pairs, inputs=True, progress=False)
    assert not any(layer.refitted or layer.before for layer in report.layers)


@pytest.mark.parametrize("scale", [None, 1e-5])
def test_units_that_others_can_replace_cost_nothing(scale: float | None) -> None:
    vision = {"ls_init_value": scale} if scale else {}
    dense = DualEncoder(clip(vision=vision).double())
    for layer in dense.layers:
        attention, mlp = layer.block.attention, layer.block.feed_forward
        assert attention is not None
        assert mlp is not None
        with torch.no_grad():
            for source in attention.sources:  # the second head is the first
                width = attention.unit_size
                source.weight[width : 2 * width], source.bias[width : 2 * width] = (
                    source.weight[:width],
                    source.bias[:width],
                )
            for source in mlp.sources:  # the first neurons are others, too
                source.weight[:5], source.bias[:5] = source.weight[10:15], source.bias[10:15]
    pairs = pairs_for(dense.model, 200)
    pairs = Pairs(pairs.images.double(), pairs.tokens)
    student = DualEncoder(copy.deepcopy(dense.model))
    for tower in ("image", "text"):
        for layer in range(len(student.towers[tower].blocks)):
            attention = student.towers[tower].blocks[layer].attention
            head = range(attention.unit_size, 2 * attention.unit_size)  # type: ignore[union-attr]
            mope.remove_units(student, [mope.scoring.Unit("head", tower, layer, 1, tuple(head)),
                                        mope.scoring.Unit("neurons", tower, layer, 0, tuple(range(5)))])  # fmt: skip
    mope.reconstruct(student, dense, pairs, ridge=1e-9, progress=False)
    fresh = pairs_for(dense.model, 10, seed=7)
    fresh = Pairs(fresh.images.double(), fresh.tokens)
    for own, whole in zip(embeddings(student, fresh), embeddings(dense, fresh), strict=True):
        assert_close(own, whole, 1e-5)


@pytest.mark.parametrize("name", ["open_clip scale_heads", "EVA02", "RoBERTa"])
def test_input_projections_are_least_squares_too(name: str) -> None:
    student, dense, pairs = pruned(name)
    slow = DualEncoder(copy.deepcopy(student.model))
    report = mope.reconstruct(
        student, dense, pairs, ridge=1e-2, inputs=True, projection=False, batch_size=5, progress=False
    )
    reconstruct_slowly(slow, dense, pairs, 1e-2, inputs=True)
    for key, value in slow.model.state_dict().items():
        torch.testing.assert_close(student.model.state_dict()[key], value, rtol=1e-7, atol=1e-7, msg=key)
    parts = {layer.part for layer in report.layers if layer.refitted}
    assert any("." in part for part in parts)
    assert any("." not in part for part in parts)


@pytest.mark.parametrize("name", ["SigLIP", "RoBERTa", "open_clip ResNet"])
def test_projection_is_found_where_there_is_one(name: str) -> None:
    student, dense, pairs = pruned(name, 12)
    report = mope.reconstruct(student, dense, pairs, ridge=1.0, progress=False)
    found = {layer.tower for layer in report.layers if layer.part == "projection"}
    without = {name.split()[0] for name in report.left_alone if name.endswith(" projection")}
    assert without == ({"image"} if "SigLIP" in name else set())
    assert found == {"image", "text"} - without


def test_projection_takes_the_map_that_it_should(student: DualEncoder, dense: DualEncoder) -> None:
    pairs = pairs_for(dense.model, 60)
    before = [e.double() for e in embeddings(student, pairs)]
    whole = [e.double() for e in embeddings(dense, pairs)]
    student_only = monkey_no_layers(student, dense, pairs, ridge=0.01)
    held = torch.arange(60) % 10 == 1
    for own, target, found in zip(before, whole, student_only, strict=True):
        fitted = own[~held]
        penalty = (0.01 * fitted.square().sum(0).mean()).sqrt() * torch.eye(own.shape[1])
        map_ = torch.linalg.lstsq(
            torch.cat([fitted, penalty]).double(), torch.cat([target[~held], penalty]).double()
        ).solution
        better = (own[held] @ map_ - target[held]).norm() < (own[held] - target[held]).norm()
        assert better
        assert_close(found, own @ map_, 1e-4)


def monkey_no_layers(student: DualEncoder, dense: DualEncoder, pairs: Pairs, ridge: float) -> tuple[Tensor, Tensor]:
    """Embeddings after the projections alone are refitted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_reconstruct._TowerFit, "refit", lambda *_, **__: iter(()))
        mope.reconstruct(student, dense, pairs, ridge=ridge, progress=False)
    return embeddings(student, pairs)


@pytest.mark.parametrize("gone", [[0], [1, 2]], ids=str)
def test_blocks_that_have_gone_are_made_up_for(gone: list[int], dense: DualEncoder) -> None:
    pairs, fresh = pairs_for(dense.model, 200), pairs_for(dense.model, 50, seed=3)
    student = DualEncoder(copy.deepcopy(dense.model))
    student.remove_blocks("image", gone)
    anew = DualEncoder(copy.deepcopy(student.model))  # knows no numbers of blocks
    whole, before = embeddings(dense, fresh)[0], embeddings(student, fresh)[0]
    report = mope.reconstruct(student, dense, pairs, progress=False)
    after = embeddings(student, fresh)[0]
    assert (after - whole).norm() < 0.8 * (before - whole).norm()
    assert len({layer.layer for layer in report.layers if layer.tower == "image"} - {None}) == 3 - len(gone)
    mope.reconstruct(anew, dense, pairs, progress=False)
    assert torch.equal(embeddings(anew, fresh)[0], after)


def test_blocks_that_nothing_tells_apart(student: DualEncoder, dense: DualEncoder, pairs: Pairs) -> None:
    student.remove_blocks("image", [1])
    with torch.no_grad():
        for parameter in student.model.parameters():
            parameter += 0.01
    anew = DualEncoder(student.model)
    with (
        unchanged(anew.model),
        pytest.raises(WrongModelError, match="dense must be the model that encoder was pruned from"),
    ):
        mope.reconstruct(anew, dense, pairs, progress=False)


@pytest.mark.parametrize("inputs", [False, True])
def test_narrower_residual_stream(dense: DualEncoder, inputs: bool) -> None:
    import torch_pruning as tp

    pairs, fresh = pairs_for(dense.model, 200), pairs_for(dense.model, 50, seed=3)
    student = DualEncoder(copy.deepcopy(dense.model))
    importance = tp.importance.GroupMagnitudeImportance(p=1)
    arguments = student.pruner_arguments(head_ratio=0.3, ffn_ratio=0.3, width_ratio=0.2)
    tp.pruner.MetaPruner(student.model, importance=importance, **arguments).step()
    whole, before = embeddings(dense, fresh), embeddings(student, fresh)
    mope.reconstruct(student, dense, pairs, inputs=inputs, progress=False)
    for after, was, target in zip(embeddings(student, fresh), before, whole, strict=True):
        assert (after - target).norm() < (was - target).norm()


def test_memory_and_the_form_of_the_pairs_change_nothing() -> None:
    dense = DualEncoder(clip(vision={"layers": 2}, text={"layers": 1}).double())
    student = DualEncoder(copy.deepcopy(dense.model))
    cut(student)
    pairs = pairs_for(dense.model, 24)
    pairs = Pairs(pairs.images.double(), pairs.tokens)
    batches = list(zip(pairs.images.split(7), pairs.tokens.split(7), strict=True))
    forms: list[tuple[Any, dict[str, Any]]] = [
        (pairs, {}),
        (pairs, {"memory": 1, "batch_size": 4}),
        (batches, {}),
        (batches, {"memory": "1KiB"}),
        (iter(batches), {}),
        ([(images, tokens[:, None]) for images, tokens in batches], {"batch_size": 3}),
    ]
    states = []
    for form, options in forms:
        copied = DualEncoder(copy.deepcopy(student.model))
        report = mope.reconstruct(copied, dense, form, ridge=1e-3, progress=False, **options)
        assert report.inputs == {"image": 24, "text": 24}
        states.append(copied.model.state_dict())
    for state in states[1:]:
        for key, value in states[0].items():
            torch.testing.assert_close(state[key], value, rtol=1e-9, atol=1e-9)


class Shuffled:
    """Batches in another order each time."""

    def __init__(self, batches: list[Any]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[Any]:
        self._batches = self._batches[1:] + self._batches[:1]
        return iter(self._batches)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype, dense: DualEncoder, student: DualEncoder) -> None:
    pairs = pairs_for(dense.model, 60)
    whole, before = embeddings(dense, pairs), embeddings(student, pairs)
    for encoder in (dense, student):
        encoder.model.to(dtype)
    half = Pairs(pairs.images.to(dtype), pairs.tokens)
    report = mope.reconstruct(student, dense, half, progress=False)
    assert all(parameter.dtype == dtype for parameter in student.model.parameters())
    assert {layer.target for layer in report.layers} == {"stream", "own output", "embedding"}
    for after, was, target in zip(embeddings(student, half), before, whole, strict=True):
        assert (after.float() - target).norm() < 0.8 * (was - target).norm()


def test_channels_without_effect_stay(dense: DualEncoder) -> None:
    dense = DualEncoder(clip(vision={"ls_init_value": 0.1}))
    for block in dense.model.visual.transformer.resblocks:
        with torch.no_grad():
            block.ls_1.gamma[3], block.ls_2.gamma[5] = 0.0, 1e-30
    student = DualEncoder(copy.deepcopy(dense.model))
    cut(student)
    blocks = student.model.visual.transformer.resblocks
    before = [(block.attn.out_proj.weight[3].clone(), block.mlp[-1].weight[5].clone()) for block in blocks]
    mope.reconstruct(student, dense, pairs_for(dense.model, 40), progress=False)
    for block, (first, second) in zip(blocks, before, strict=True):
        assert_close(block.attn.out_proj.weight[3], first, 1e-6)
        assert_close(block.mlp[-1].weight[5], second, 1e-6)


def test_what_is_left_alone_is_named() -> None:
    dense = DualEncoder(build("CoCa"))
    student = DualEncoder(copy.deepcopy(dense.model))
    cut(student)
    decoder = {name: value.clone() for name, value in student.model.text_decoder.state_dict().items()}
    report = mope.reconstruct(student, dense, pairs_of(dense, 20), towers=("text",), progress=False)
    assert "decoder" in report.left_alone
    assert {layer.tower for layer in report.layers} == {"text"}
    assert all(torch.equal(value, decoder[name]) for name, value in student.model.text_decoder.state_dict().items())
    assert "decoder: left alone" in str(report)
    assert json.loads(report.to_json())["layers"][0]["part"].startswith("attention")


def _nan(pairs: Pairs) -> Pairs:
    pairs.images[3, 0, 0, 0] = math.nan
    return pairs


SMALL = (torch.zeros(4, 3, 16, 16), torch.ones(4, 9, dtype=torch.long))


@pytest.mark.parametrize(
    ("given", "options", "error", "match"),
    [
        (None, {"ridge": 0.0}, ValueError, "ridge must be a positive number"),
        (None, {"ridge": math.nan}, ValueError, "ridge must be a positive number"),
        (None, {"towers": ("decoder",)}, ValueError, "towers must be"),
        (None, {"towers": "image"}, ValueError, "towers must be"),
        (None, {"held_out": 0.9}, ValueError, "held_out must be"),
        (None, {"batch_size": 0}, ValueError, "batch_size must be"),
        (None, {"memory": "much"}, ValueError, "memory must be"),
        (lambda _: [], {}, ValueError, "pairs must hold"),
        (lambda _: iter(()), {}, ValueError, "pairs must hold"),
        (lambda _: [SMALL], {}, ValueError, r"pairs must hold images \[3, 24, 24\]"),
        (lambda p: Pairs(p.images, p.tokens + 60), {}, ValueError, "Use the tokenizer of this model"),
        (lambda p: iter([(p.images, p.tokens)]), {"memory": 10}, ValueError, "pairs must fit in memory=10"),
        (lambda p: Shuffled(list(zip(p.images.split(4), p.tokens.split(4), strict=True))), {"memory": 10}, ValueError,
         "the same batches in the same order"),
        (_nan, {}, NonFiniteError, "found NaN or infinity at image layer 0"),
    ],
)  # fmt: skip
def test_bad_input(
    given: Callable[[Pairs], Any] | None, options: dict[str, Any], error: type[Exception], match: str,
    student: DualEncoder, dense: DualEncoder, pairs: Pairs,
) -> None:  # fmt: skip
    student.model.train()
    with unchanged(student.model), unchanged(dense.model), pytest.raises(error, match=match):
        mope.reconstruct(student, dense, pairs if given is None else given(pairs), progress=False, **options)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda s, _: s, ValueError, "dense must be another model than encoder"),
        (lambda s, _: DualEncoder(s.model), ValueError, "dense must be another model than encoder"),
        (lambda _, d: DualEncoder(_shared(d)), WrongModelError, "dense must be the model that encoder was pruned from"),
        (lambda *_: DualEncoder(clip(vision={"layers": 2})), WrongModelError, "dense must be the model"),
        (lambda *_: DualEncoder(clip(vision={"width": 20})), WrongModelError, "dense must be the model"),
        (lambda *_: DualEncoder(build("RoBERTa")), WrongModelError, "found a CustomTextCLIP for a CLIP"),
        (lambda *_: DualEncoder(clip().to("meta")), ValueError, "must have its weights"),
    ],
    ids=["itself", "same model", "pruned further", "fewer layers", "narrower", "another type", "meta"],
)
def test_wrong_dense_model(
    make: Callable[..., DualEncoder],
    error: type[Exception],
    match: str,
    student: DualEncoder,
    dense: DualEncoder,
    pairs: Pairs,
) -> None:
    other = make(student, dense)
    with unchanged(student.model), pytest.raises(error, match=match):
        mope.reconstruct(student, other, pairs, progress=False)


def _shared(dense: DualEncoder) -> nn.Module:
    smaller = DualEncoder(copy.deepcopy(dense.model))
    cut(smaller, 0.8)
    model: nn.Module = smaller.model
    return model


@pytest.mark.parametrize(("given", "match"), [(3, "pairs must be"), ([3], "pairs must be batches")])
def test_pairs_of_another_type(given: Any, match: str, student: DualEncoder, dense: DualEncoder) -> None:
    with unchanged(student.model), pytest.raises(TypeError, match=match):
        unchecked(mope.reconstruct)(student, dense, given, progress=False)


def test_interrupted_half_way(
    student: DualEncoder, dense: DualEncoder, pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit, count = _reconstruct.fit_group, 0

    def interrupted(*args: Any) -> Any:
        nonlocal count
        count += 1
        if count == 4:
            raise KeyboardInterrupt
        return fit(*args)

    monkeypatch.setattr(_reconstruct, "fit_group", interrupted)
    student.model.visual.conv1.requires_grad_(False)
    with unchanged(student.model), unchanged(dense.model), pytest.raises(KeyboardInterrupt):
        mope.reconstruct(student, dense, pairs, progress=False)


def test_two_processes_end_with_the_weights_of_one(tmp_path: Path) -> None:
    assert run_ranks(reconstruct_in_ranks.main, tmp_path) == [0, 0]
    alone = tmp_path / "alone"
    alone.mkdir()
    reconstruct_in_ranks.main(0, alone)
    one, first, second = (
        torch.load(path) for path in (alone / "rank0.pt", tmp_path / "rank0.pt", tmp_path / "rank1.pt")
    )
    for key, value in one.items():
        assert torch.equal(first[key], second[key])
        torch.testing.assert_close(first[key], value, rtol=1e-9, atol=1e-9)


def test_stock_criterion_on_the_tiny_clip() -> None:
    import torch_pruning as tp

    dense = DualEncoder(mope.load_tiny_clip())
    pairs, test = mope.emoji_pairs("calibration", 200, seed=0), mope.emoji_pairs("test", 300, seed=0)
    student = DualEncoder(copy.deepcopy(dense.model))
    importance = tp.importance.GroupMagnitudeImportance(p=1)
    arguments = student.pruner_arguments(head_ratio=0.4, ffn_ratio=0.5, global_pruning=True)
    tp.pruner.MetaPruner(student.model, importance=importance, **arguments).step()
    metric = mope.metrics.Recall((1,))
    before, whole = (metric(*embeddings(e, test), test.image_index) for e in (student, dense))
    mope.reconstruct(student, dense, pairs, progress=False)
    after = metric(*embeddings(student, test), test.image_index)
    assert after - before > 0.5 * (whole - before)


assert VISION["layers"] == 3
