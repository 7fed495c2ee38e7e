"""Issue 2's list of bad input, to scoring: each has its error, and the model is bit-identical afterwards."""

import math
from typing import Any

import pytest
import torch
import torch_pruning as tp
from torch import Tensor

import torch_pruning_mope as mope
from tests.asserts import unchanged, unchecked
from tests.unit.models import clip, pairs_for
from torch_pruning_mope import DualEncoder
from torch_pruning_mope.errors import MetricError, NonFiniteError

ENGINES = pytest.mark.parametrize("engine", ["prefix", "plain"])


@pytest.fixture
def used(encoder: DualEncoder, pairs: mope.Pairs) -> DualEncoder:
    """An encoder in mixed modes, half frozen, with gradients and a hook of the user's: much to leave alone."""
    encoder.accumulate_gradients(pairs)
    encoder.model.train()
    encoder.model.visual.transformer.resblocks[1].eval()
    encoder.model.visual.conv1.requires_grad_(False)
    encoder.model.ln_final.register_forward_hook(lambda *_: None)
    return encoder


def test_scoring_leaves_a_used_model_alone(used: DualEncoder, pairs: mope.Pairs) -> None:
    for options in ({"engine": "prefix"}, {"engine": "plain"}, {"interaction": "single"}, {"rewire": "none"}):
        with unchanged(used.model):
            mope.score(used, pairs, kinds=("head", "neurons", "block"), groups=2, progress=False, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ([], "no calibration pairs"),
        (iter([]), "no calibration pairs"),
        ([(torch.zeros(0, 3, 24, 24), torch.zeros(0, 9, dtype=torch.long))], "no calibration pairs"),
        ([(torch.zeros(1, 3, 24, 24), torch.ones(1, 9, dtype=torch.long))], "one pair"),
    ],
    ids=["list", "generator", "empty batch", "one"],
)
def test_too_few_pairs(used: DualEncoder, given: Any, match: str) -> None:
    with unchanged(used.model), pytest.raises(ValueError, match=match):
        mope.score(used, given, progress=False)
    with unchanged(used.model), pytest.raises(ValueError, match=r"no calibration pairs|one pair"):
        mope.MoPEImportance(used, given)


def test_captions_without_end_of_text(used: DualEncoder, pairs: mope.Pairs) -> None:
    pairs.tokens[2][pairs.tokens[2] == 49] = 1
    with unchanged(used.model), pytest.raises(ValueError, match="every caption must hold an end-of-text token"):
        mope.score(used, pairs, progress=False)
    importance = mope.MoPEImportance(used, pairs, progress=False)
    pruner = tp.pruner.MetaPruner(used.model, importance=importance, **used.pruner_arguments(head_ratio=0.5))
    with unchanged(used.model), pytest.raises(ValueError, match="every caption must hold an end-of-text token"):
        pruner.step()


@ENGINES
@pytest.mark.parametrize("rewire", ["taylor", "none"])
def test_images_that_are_no_numbers(used: DualEncoder, pairs: mope.Pairs, engine: Any, rewire: Any) -> None:
    pairs.images[4, 0, 0, 0] = math.nan
    with unchanged(used.model), pytest.raises(NonFiniteError, match="must be finite; found NaN or infinity"):
        mope.score(used, pairs, engine=engine, rewire=rewire, progress=False)


@ENGINES
def test_weights_that_became_no_numbers(used: DualEncoder, pairs: mope.Pairs, engine: Any) -> None:
    with torch.no_grad():
        used.model.text_projection[0, 0] = math.inf
    with unchanged(used.model), pytest.raises(NonFiniteError, match="text embeddings must be finite"):
        mope.score(used, pairs, engine=engine, rewire="none", progress=False)


@ENGINES
@pytest.mark.parametrize("late", [0, 20])
@pytest.mark.parametrize(
    ("result", "match"),
    [(torch.tensor(0.1), "must return a float; found a tensor"), (math.nan, "must return a finite number; found nan")],
)
def test_metrics_that_return_no_number(
    used: DualEncoder, pairs: mope.Pairs, engine: Any, result: Any, match: str, late: int
) -> None:
    calls = 0

    def metric(images: Tensor, texts: Tensor) -> Any:
        nonlocal calls
        calls += 1
        return result if calls > late else 0.5

    with unchanged(used.model), pytest.raises(MetricError, match=match):
        mope.score(used, pairs, metric=metric, engine=engine, groups=4, progress=False)
    assert calls == late + 1


def test_metrics_that_cannot_be_called(used: DualEncoder, pairs: mope.Pairs) -> None:
    for metric in ("accuracy", 0.5, None):
        with unchanged(used.model), pytest.raises(MetricError, match="metric must be 'recall_mean'"):
            unchecked(mope.score)(used, pairs, metric=metric, progress=False)


@ENGINES
def test_an_exception_inside_a_metric_leaves_nothing_behind(used: DualEncoder, pairs: mope.Pairs, engine: Any) -> None:
    calls = 0

    def metric(images: Tensor, texts: Tensor) -> float:
        nonlocal calls
        calls += 1
        if calls > 5:
            raise ZeroDivisionError("the user's own")
        return 0.0

    with unchanged(used.model), pytest.raises(ZeroDivisionError, match="the user's own"):
        mope.score(used, pairs, metric=metric, engine=engine, progress=False)
    importance = mope.MoPEImportance(used, pairs, metric=metric, engine=engine, progress=False)
    pruner = tp.pruner.MetaPruner(used.model, importance=importance, **used.pruner_arguments(head_ratio=0.5))
    with unchanged(used.model), pytest.raises(ZeroDivisionError, match="the user's own"):
        pruner.step()


def test_an_interruption_leaves_nothing_behind(used: DualEncoder, pairs: mope.Pairs) -> None:
    def metric(images: Tensor, texts: Tensor) -> float:
        raise KeyboardInterrupt

    with unchanged(used.model), pytest.raises(KeyboardInterrupt):
        mope.score(used, pairs, metric=metric, engine="plain", progress=False)


@ENGINES
def test_a_model_that_fails_half_way_is_left_as_it_was(used: DualEncoder, pairs: mope.Pairs, engine: Any) -> None:
    handle = used.model.transformer.resblocks[1].ln_2.register_forward_hook(_fails)
    with unchanged(used.model), pytest.raises(ArithmeticError, match="half way"):
        mope.score(used, pairs, engine=engine, rewire="none", progress=False)
    handle.remove()


def _fails(*_: Any) -> None:
    raise ArithmeticError("half way")


@ENGINES
@pytest.mark.parametrize(
    ("mode", "rewire"),
    [(torch.no_grad, "taylor"), (torch.inference_mode, "taylor"), (torch.inference_mode, "none")],
)
def test_scores_without_autograd(encoder: DualEncoder, pairs: mope.Pairs, engine: Any, mode: Any, rewire: Any) -> None:
    expected = mope.score(encoder, pairs, engine=engine, rewire=rewire, groups=3, progress=False)
    with unchanged(encoder.model), mode():
        assert mope.score(encoder, pairs, engine=engine, rewire=rewire, groups=3, progress=False) == expected


@ENGINES
def test_train_mode_scores_like_eval_mode(pairs: mope.Pairs, engine: Any) -> None:
    """Patch dropout would make scores random."""
    encoder = DualEncoder(clip(vision={"patch_dropout": 0.5}))
    expected = mope.score(encoder, pairs, engine=engine, groups=3, progress=False)
    encoder.model.train()
    with unchanged(encoder.model):
        assert mope.score(encoder, pairs, engine=engine, groups=3, progress=False) == expected


@ENGINES
def test_a_frozen_model_scores_and_prunes(encoder: DualEncoder, pairs: mope.Pairs, engine: Any) -> None:
    expected = mope.score(encoder, pairs, engine=engine, groups=3, progress=False)
    encoder.model.requires_grad_(False)
    with unchanged(encoder.model):
        assert mope.score(encoder, pairs, engine=engine, groups=3, progress=False) == expected
    importance = mope.MoPEImportance(encoder, pairs, groups=3, engine=engine, progress=False)
    assert mope.prune(encoder, importance, head_ratio=0.5, ffn_ratio=0.5).heads == 10
    assert not any(parameter.requires_grad for parameter in encoder.model.parameters())


@ENGINES
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions_score_and_prune(pairs: mope.Pairs, engine: Any, dtype: torch.dtype) -> None:
    encoder = DualEncoder(clip().to(dtype))
    with unchanged(encoder.model):
        table = mope.score(encoder, pairs, engine=engine, groups=3, kinds=("head", "neurons", "block"), progress=False)
    assert all(math.isfinite(value) for s in table.scores for value in (s.value, s.stderr, s.loss))
    assert {parameter.dtype for parameter in encoder.model.parameters()} == {dtype}
    fallback = tp.importance.GroupMagnitudeImportance()
    importance = mope.MoPEImportance(encoder, pairs, groups=3, engine=engine, progress=False, fallback=fallback)
    assert mope.prune(encoder, importance, head_ratio=0.5, ffn_ratio=0.5, width_ratio=0.25).heads == 10
    assert encoder.embed("image", pairs.images).dtype == dtype


def test_double_precision_engine_equals_plain_loop_closely(pairs: mope.Pairs) -> None:
    encoder = DualEncoder(clip().double())
    tables = [
        mope.score(encoder, pairs, metric="contrastive_loss", engine=engine, groups=3, progress=False)
        for engine in ("prefix", "plain")
    ]
    for fast, slow in zip(tables[0].scores, tables[1].scores, strict=True):
        assert fast.value == pytest.approx(slow.value, abs=1e-12)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a second device")
@ENGINES
def test_a_model_on_another_device_than_the_pairs(pairs: mope.Pairs, engine: Any) -> None:
    expected = mope.score(DualEncoder(clip()), pairs, groups=3, engine=engine, progress=False)
    encoder = DualEncoder(clip().cuda())
    fallback = tp.importance.GroupMagnitudeImportance()
    for given in (pairs, pairs.to("cuda")):
        with unchanged(encoder.model):
            table = mope.score(encoder, given, groups=3, engine=engine, progress=False)
        assert table.weights == expected.weights
        assert table.pairs == expected.pairs
        assert table.dense == pytest.approx(expected.dense, abs=0.1)
    importance = mope.MoPEImportance(encoder, pairs, groups=3, engine=engine, progress=False, fallback=fallback)
    mope.prune(encoder, importance, head_ratio=0.5, ffn_ratio=0.5, width_ratio=0.2, global_pruning=True)
    assert {parameter.device.type for parameter in encoder.model.parameters()} == {"cuda"}
    encoder.accumulate_gradients(pairs, squared=True)


def test_pairs_of_another_image_size(used: DualEncoder) -> None:
    other = pairs_for(clip(vision={"image_size": 32}), 4)
    with unchanged(used.model), pytest.raises(Exception, match=r"size|shape|match"):
        mope.score(used, other, progress=False)
