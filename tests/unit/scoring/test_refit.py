"""Scores that know of reconstruction, against physical removal and least squares on the stacked system."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torch_pruning_mope as mope
from tests.asserts import unchanged
from tests.unit.models import clip, pairs_for
from tests.unit.scoring.oracle import refitted_without
from tests.unit.towers.test_open_clip import CASES
from torch_pruning_mope.scoring import Ablation

KINDS = ("head", "neurons", "block", "attention", "mlp")
OPTIONS: dict[str, Any] = {"kinds": KINDS, "groups": 3, "interaction": "single", "rewire": "none", "progress": False}


def refitted(encoder: mope.DualEncoder, pairs: mope.Pairs, gone: Ablation) -> mope.DualEncoder:
    """Rows by the rules of open_clip's pooling."""
    last = gone.layer == len(encoder.towers[gone.tower].blocks) - 1
    return refitted_without(encoder, gone, lambda model, layer: inputs_of(model, layer, gone.tower, pairs, last))


def inputs_of(encoder: mope.DualEncoder, layer: nn.Module, tower: str, pairs: mope.Pairs, last: bool) -> Tensor:
    found: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, args: found.append(args[0]))
    with torch.no_grad():
        encoder.embed(tower, pairs.images if tower == "image" else pairs.tokens)  # type: ignore[arg-type]
    handle.remove()
    hidden, tokens = found[0], torch.arange(found[0].shape[1])
    if tower == "image":
        return hidden[:, 0] if last else hidden.flatten(0, 1)
    end = pairs.tokens.argmax(1, keepdim=True)
    return hidden[tokens == end] if last else hidden[tokens <= end]


@torch.no_grad()
def value_of(encoder: mope.DualEncoder, pairs: mope.Pairs) -> float:
    metric = mope.metrics.ContrastiveLoss(float(encoder.logit_scale))
    return metric(encoder.embed("image", pairs.images), encoder.embed("text", pairs.tokens))


def double(**case: Any) -> tuple[mope.DualEncoder, mope.Pairs]:
    model = clip(**case)
    pairs = pairs_for(model, 9)
    return mope.DualEncoder(model.double()), mope.Pairs(pairs.images.double(), pairs.tokens)


@pytest.mark.parametrize("case", ["layer scale", "inner norm of attention", "inner norm of the MLP"])
def test_scores_equal_removal_and_least_squares(case: str) -> None:
    shapes = {tower: CASES[case].get(tower, {}) | {"layers": layers} for tower, layers in (("vision", 2), ("text", 2))}
    encoder, pairs = double(**shapes)
    with unchanged(encoder.model):
        tables = [
            mope.score(encoder, pairs, reconstruct=True, engine=engine, **OPTIONS) for engine in ("prefix", "plain")
        ]
    plain = mope.score(encoder, pairs, **OPTIONS)
    dense = value_of(encoder, pairs)
    differ = 0
    for found, other, blind in zip(*(table.scores for table in (*tables, plain)), strict=True):
        unit = found.unit
        gone = Ablation(unit.tower, unit.layer, unit.part, unit.channels)
        expected = dense - value_of(refitted(encoder, pairs, gone), pairs)
        assert found.value == pytest.approx(expected, abs=1e-8), str(unit)
        assert other.value == pytest.approx(expected, abs=1e-8), str(unit)
        differ += abs(found.value - blind.value) > 1e-4
    assert differ > len(plain.scores) / 2


def test_nests_and_paths_stay_refitted() -> None:
    """Layers keep making up for units that have gone, by sums of the whole model, while others lose units too."""
    encoder, pairs = double()
    options = OPTIONS | {"kinds": ("head", "neurons"), "reconstruct": True}
    dense = value_of(encoder, pairs)
    nested = mope.score(encoder, pairs, **options | {"interaction": "nested"})
    gone: dict[Any, tuple[int, ...]] = {}
    for score in nested.of("neurons", "image", 1):
        place = (score.unit.tower, score.unit.layer, score.unit.part)
        gone[place] = (*gone.get(place, ()), *score.unit.channels)
        smaller = refitted(encoder, pairs, Ablation(*place, gone[place]))
        assert score.loss == pytest.approx(dense - value_of(smaller, pairs), abs=1e-8)
    tables = [
        mope.score(encoder, pairs, **options | {"interaction": "joint", "engine": engine, "until": 0.4})
        for engine in ("prefix", "plain")
    ]
    gone, mended = {}, mope.DualEncoder(copy.deepcopy(encoder.model))
    for score, plain in zip(tables[0].scores, tables[1].scores, strict=True):
        place = (score.unit.tower, score.unit.layer, score.unit.part)
        gone[place] = (*gone.get(place, ()), *score.unit.channels)
        ablation = Ablation(*place, gone[place])
        _mend(mended, refitted(encoder, pairs, ablation), ablation)
        assert score.unit == plain.unit
        for found in (score, plain):
            assert found.loss == pytest.approx(dense - value_of(mended, pairs), abs=1e-8)
    assert len(gone) > 5


def _mend(encoder: mope.DualEncoder, source: mope.DualEncoder, gone: Ablation) -> None:
    """Takes one refitted layer over into a model that is still whole there, with zeros for what has gone."""
    name = "attention" if gone.part == "head" else "feed_forward"
    own, other = (getattr(model.towers[gone.tower].blocks[gone.layer], name).output for model in (encoder, source))
    kept = [channel for channel in range(own.in_features) if channel not in gone.channels]
    with torch.no_grad():
        own.weight.zero_()
        if kept:
            own.weight[:, kept] = other.weight
        own.bias.copy_(other.bias)


def twins(encoder: mope.DualEncoder) -> None:
    """Mutates the model: heads 0 and 1, and neurons 0 and 1, of an image layer become equal but for their outgoing weights."""
    block = encoder.image.blocks[1].module
    size = block.attn.head_dim
    with torch.no_grad():
        for layer in (block.attn.q_proj, block.attn.k_proj, block.attn.v_proj):
            layer.weight[size : 2 * size] = layer.weight[:size]
            layer.bias[size : 2 * size] = layer.bias[:size]
        block.mlp.c_fc.weight[1] = block.mlp.c_fc.weight[0]
        block.mlp.c_fc.bias[1] = block.mlp.c_fc.bias[0]


@pytest.mark.parametrize("engine", ["prefix", "plain"])
def test_what_others_replace_scores_nothing(engine: str) -> None:
    encoder, pairs = double()
    twins(encoder)
    options = OPTIONS | {"kinds": ("head", "neurons"), "groups": 56, "towers": ("image",), "engine": engine}
    aware = mope.score(encoder, pairs, reconstruct=True, **options)
    blind = mope.score(encoder, pairs, **options)
    for kind in ("head", "neurons"):
        for index in (0, 1):
            score, other = (table.of(kind, "image", 1)[index] for table in (aware, blind))
            assert abs(score.value) < 1e-4 < abs(other.value)
        # One of them has to stay.
    both = mope.score(encoder, pairs, reconstruct=True, **options | {"kinds": ("neurons",), "interaction": "joint"})
    order = [score.unit.index for score in both.scores if score.unit.layer == 1]
    assert order.index(0) == 0


def test_neurons_ordered_by_what_a_refit_leaves() -> None:
    encoder, pairs = double()
    twins(encoder)
    table = mope.score(encoder, pairs, **OPTIONS | {"kinds": ("neurons",), "rewire": "obs", "groups": 7})
    block = encoder.image.blocks[1]
    order = [channel for score in table.of("neurons", "image", 1) for channel in score.unit.channels]
    assert set(order[:2]) == {0, 1}
    losses = []
    for channel in order:
        gone = Ablation("image", 1, "neurons", (channel,))
        smaller = refitted(encoder, pairs, gone).image.blocks[1].module.mlp.c_proj
        output: Any = block.module.mlp.c_proj  # type: ignore[union-attr]
        hidden = inputs_of(encoder, output, "image", pairs, last=False)
        kept = [other for other in range(56) if other != channel]
        change = (hidden[:, kept] @ smaller.weight.mT + smaller.bias) - (hidden @ output.weight.mT + output.bias)
        ridge = 1e-4 * float(hidden.square().sum(0).mean())
        moved = (smaller.weight - output.weight[:, kept]).square().sum() + (smaller.bias - output.bias).square().sum()
        moved = moved + output.weight[:, channel].square().sum()
        losses.append((change.square().sum() + ridge * moved).item())
    assert losses == sorted(losses)


def test_tables_say_whether_they_know_of_reconstruction(
    encoder: mope.DualEncoder, pairs: mope.Pairs, tmp_path: Any
) -> None:
    options = OPTIONS | {"kinds": ("head",), "path": tmp_path / "table.json"}
    table = mope.score(encoder, pairs, reconstruct=True, **options)
    assert mope.ScoreTable.load(tmp_path / "table.json").settings["reconstruct"] is True
    assert mope.score(encoder, pairs, reconstruct=True, **options) == table
    with pytest.raises(ValueError, match="is for other reconstruct"):
        mope.score(encoder, pairs, **options)
    importance = mope.MoPEImportance(encoder, pairs, kinds=("head",), rewire="none", reconstruct=True, progress=False)
    assert importance.table.settings["reconstruct"] is True


@pytest.mark.parametrize("interaction", ["nested", "joint"])
def test_less_memory_gives_the_same_scores(interaction: Any) -> None:
    encoder, pairs = double(vision={"layers": 2}, text={"layers": 1})
    options = OPTIONS | {"kinds": ("head", "neurons"), "interaction": interaction, "batch_size": 9, "reconstruct": True}
    with pytest.raises(ValueError, match=r"memory must leave (\d+) bytes for reconstruction") as refusal:
        mope.score(encoder, pairs, memory=1000, **options)
    least = int(str(refusal.value).split()[3])
    found = mope.score(encoder, pairs, memory=max(2 * least, 600_000), **options)
    assert found == mope.score(encoder, pairs, **options)
