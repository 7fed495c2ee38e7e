"""Greedy paths, against brute force, against the plain loop, and against what a pruner removes."""

from collections.abc import Iterator, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import torch_pruning_mope as mope
from torch_pruning_mope.scoring import Ablation, Loss, Meter, PrefixEngine, greedy_path, single_ablation
from torch_pruning_mope.towers import Unit

from ..models import clip, pairs_for

UNITS = [Unit("head", "image" if i < 3 else "text", i % 3, i, (i,)) for i in range(5)]
SIZES = dict.fromkeys(UNITS, 1)
ABLATIONS = [single_ablation(unit) for unit in UNITS]


class FakeMeter(Meter):
    """Losses from a quadratic set function: own losses and losses of pairs that go together."""

    def __init__(self, own: Sequence[float], together: Sequence[float]) -> None:
        self.own, self.together = own, torch.tensor(together).view(5, 5).triu(1)
        self.removed: list[Ablation] = []
        self.evaluations = 0

    def value(self, ablations: Sequence[Ablation]) -> float:
        chosen = [ABLATIONS.index(ablation) for ablation in ablations]
        return sum(self.own[i] for i in chosen) + float(self.together[chosen][:, chosen].sum())

    def losses(self, ablations: Sequence[Ablation]) -> Iterator[tuple[Ablation, Loss]]:
        for ablation in ablations:
            self.evaluations += 1
            yield ablation, Loss(self.value([*self.removed, ablation]), None)

    def remove(self, ablation: Ablation) -> None:
        self.removed.append(ablation)

    def reset(self) -> None:
        self.removed.clear()


def brute_force(meter: FakeMeter) -> list[float]:
    """Losses along the path of always taking the cheapest next."""
    path: list[Ablation] = []
    losses = []
    while len(path) < len(ABLATIONS):
        rest = [ablation for ablation in ABLATIONS if ablation not in path]
        path.append(min(rest, key=lambda ablation: meter.value([*path, ablation])))
        losses.append(meter.value(path))
    return losses


NUMBERS = st.floats(-1, 1, width=32)


@settings(max_examples=50, deadline=None)
@given(own=st.lists(NUMBERS, min_size=5, max_size=5), together=st.lists(NUMBERS, min_size=25, max_size=25))
def test_full_greedy_is_brute_force(own: list[float], together: list[float]) -> None:
    meter = FakeMeter(own, together)
    path = greedy_path(meter, SIZES, lazy=False)
    assert {unit for unit, _ in path} == set(UNITS)
    assert [loss.value for _, loss in path] == pytest.approx(brute_force(meter), abs=1e-5)
    assert not meter.removed


@settings(max_examples=50, deadline=None)
@given(
    own=st.lists(NUMBERS, min_size=5, max_size=5),
    together=st.lists(st.floats(0, 1, width=32), min_size=25, max_size=25),
)
def test_lazy_is_full_where_increments_only_grow(own: list[float], together: list[float]) -> None:
    lazy, full = FakeMeter(own, together), FakeMeter(own, together)
    lazy_path = greedy_path(lazy, SIZES, lazy=True)
    full_path = greedy_path(full, SIZES, lazy=False)
    assert [loss.value for _, loss in lazy_path] == pytest.approx([loss.value for _, loss in full_path], abs=1e-5)
    assert lazy.evaluations <= full.evaluations == 15


@pytest.mark.parametrize("kinds", [("head",), ("block",)])
def test_the_engines_path_is_the_plain_loops(encoder: mope.DualEncoder, pairs: mope.Pairs, kinds: tuple[str]) -> None:
    tables = [
        mope.score(
            encoder, pairs, metric="contrastive_loss", kinds=kinds, interaction="greedy", engine=engine, progress=False
        )
        for engine in ("prefix", "plain")
    ]
    assert [score.unit for score in tables[0].scores] == [score.unit for score in tables[1].scores]
    for found, expected in zip(tables[0].scores, tables[1].scores, strict=True):
        assert found.loss == pytest.approx(expected.loss, abs=1e-5)
        assert found.value == pytest.approx(expected.value, abs=1e-5)
    values = [score.value for score in tables[0].scores]
    assert values == sorted(values)


def test_losses_along_the_path_are_those_of_the_pruned_model(encoder: mope.DualEncoder, pairs: mope.Pairs) -> None:
    table = mope.score(encoder, pairs, metric="contrastive_loss", kinds=("head",), interaction="greedy", progress=False)
    for ratio in (0.2, 0.5):
        pruned = mope.DualEncoder(clip())
        removed = mope.prune(
            pruned, mope.MoPEImportance(pruned, table=table), head_ratio=ratio, global_pruning=True
        ).heads
        prefix = [score.unit for score in table.scores[:removed]]
        left = dict.fromkeys(((u.tower, u.layer) for u in prefix), 0)
        emptied = any(
            sum((unit.tower, unit.layer) == key for unit in prefix)
            == encoder.towers[key[0]].blocks[key[1]].attention.num_units
            for key in left
        )
        assert not emptied, "choose ratios whose prefix leaves every layer a head"
        dense = mope.score(pruned, pairs, metric="contrastive_loss", kinds=("head",), progress=False).dense
        assert table.dense - dense == pytest.approx(table.scores[removed - 1].loss, abs=1e-5)


def test_removals_add_up_to_removing_both_and_twins_tie() -> None:
    model = clip()
    attention = model.visual.transformer.resblocks[0].attn
    width = attention.head_dim
    with torch.no_grad():  # heads 0 and 1 become copies
        for rows in (*attention.in_proj_weight.chunk(3), *attention.in_proj_bias.chunk(3)):
            rows[width : 2 * width] = rows[:width]
        attention.out_proj.weight[:, width : 2 * width] = attention.out_proj.weight[:, :width]
    encoder = mope.DualEncoder(model)
    pairs = pairs_for(model, 12)
    meter = Meter(PrefixEngine(encoder), pairs, mope.metrics.ContrastiveLoss())
    first, second = (Ablation("image", 0, "head", tuple(range(h * width, (h + 1) * width))) for h in (0, 1))
    alone = dict(meter.losses([first, second]))
    assert alone[first].value == pytest.approx(alone[second].value, rel=1e-4)
    meter.remove(first)
    both = dict(meter.losses([second]))[second].value
    merged = Ablation("image", 0, "head", first.channels + second.channels)
    meter.reset()
    assert dict(meter.losses([merged]))[merged].value == pytest.approx(both, rel=1e-4)
