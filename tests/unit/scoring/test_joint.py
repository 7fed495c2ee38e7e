"""The joint path, against brute force on set functions and on the plain loop, and against what surgery removes."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import torch_pruning_mope as mope
from torch_pruning_mope.cost import freed_parameters
from torch_pruning_mope.encoder import TowerName
from torch_pruning_mope.scoring import Ablation, Loss, Meter, PlainEngine, PrefixEngine, enumerate_units, greedy_path
from torch_pruning_mope.towers import Unit

from ..models import clip
from .oracle import physically_without

BOTH = ("image", "text")
ENCODER = mope.DualEncoder(clip())
"""For examples that only count its parameters."""


def parameters(encoder: mope.DualEncoder) -> int:
    return sum(parameter.numel() for parameter in encoder.model.parameters())


def units_of(encoder: mope.DualEncoder, kinds: Sequence[str] = ("head", "neurons"), groups: int = 3) -> list[Unit]:
    """Units whose neurons are in no natural order."""
    orders = {
        (layer.tower, layer.index): torch.randperm(layer.block.feed_forward.num_units).tolist()
        for layer in encoder.layers
    }
    return enumerate_units(encoder, kinds, orders, groups, BOTH)


def joint_path(
    meter: Meter, encoder: mope.DualEncoder, units: Sequence[Unit], **options: Any
) -> list[tuple[Unit, Loss]]:
    """All kinds in one order, by the loss per freed parameter."""
    return greedy_path(meter, {unit: freed_parameters(encoder, unit) for unit in units}, **options)


def merged(units: Sequence[Unit]) -> list[Ablation]:
    """One ablation per sub-layer."""
    channels: dict[tuple[str, int, str], tuple[int, ...]] = {}
    for unit in units:
        key = (unit.tower, unit.layer, unit.kind)
        channels[key] = channels.get(key, ()) + unit.channels
    return [Ablation(tower, layer, kind, own) for (tower, layer, kind), own in channels.items()]  # type: ignore[arg-type]


@torch.no_grad()
def value_of(encoder: mope.DualEncoder, pairs: mope.Pairs, metric: mope.metrics.Metric) -> float:
    return metric(encoder.embed("image", pairs.images), encoder.embed("text", pairs.tokens))


class FakeMeter(Meter):
    """A set function of units: their own losses, and losses of those that go together."""

    def __init__(self, units: Sequence[Unit], seed: int, *, together: float) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.units = units
        self.own = torch.randn(len(units), generator=generator, dtype=torch.double)
        self.pairs = together * torch.rand(len(units), len(units), generator=generator, dtype=torch.double).triu(1)
        self.removed: list[Ablation] = []
        self.evaluations = 0

    def value(self, ablations: Sequence[Ablation]) -> float:
        def gone(unit: Unit) -> bool:
            return any(
                (a.tower, a.layer, a.part) == (unit.tower, unit.layer, unit.kind)
                and set(unit.channels) <= set(a.channels)
                for a in ablations
            ) or any((a.tower, a.layer, a.part) == (unit.tower, unit.layer, "block") for a in ablations)

        mask = torch.tensor([gone(unit) for unit in self.units]).double()
        return float(self.own @ mask + mask @ self.pairs @ mask)

    def losses(self, ablations: Sequence[Ablation]) -> Iterator[tuple[Ablation, Loss]]:
        for ablation in reversed(ablations):  # in an order of its own, as the engine's
            self.evaluations += 1
            yield ablation, Loss(self.value([*self.removed, ablation]), None)

    def remove(self, ablation: Ablation) -> None:
        self.removed.append(ablation)

    def reset(self) -> None:
        self.removed.clear()


def same_mlp(one: Unit, other: Unit) -> bool:
    return (one.kind, one.tower, one.layer) == (other.kind, other.tower, other.layer) and one.kind == "neurons"


def nexts(units: Sequence[Unit], gone: Sequence[Unit]) -> list[Unit]:
    """Units that may go next: any head, and the first neuron group left of each layer."""
    rest = [unit for unit in units if unit not in gone]
    return [unit for unit in rest if unit.kind == "head" or unit == next(u for u in rest if same_mlp(u, unit))]


def brute_force(meter: FakeMeter, encoder: mope.DualEncoder, units: Sequence[Unit]) -> list[tuple[Unit, float]]:
    """Always the unit with the lowest increment per parameter."""
    gone: list[Unit] = []
    losses = [0.0]
    sizes = {unit: freed_parameters(encoder, unit) for unit in units}
    while candidates := nexts(units, gone):
        values = {unit: meter.value(merged([*gone, unit])) for unit in candidates}
        slopes = {unit: (value - losses[-1]) / sizes[unit] for unit, value in values.items()}
        gone.append(min(candidates, key=slopes.__getitem__))
        losses.append(values[gone[-1]])
    return list(zip(gone, losses[1:], strict=True))


@pytest.mark.parametrize("kind", ["head", "neurons", "block"])
def test_freed_parameters_are_those_that_surgery_removes(encoder: mope.DualEncoder, kind: str) -> None:
    for unit in units_of(encoder, (kind,)):
        smaller = physically_without(encoder, unit)
        assert freed_parameters(encoder, unit) == parameters(encoder) - parameters(smaller)


def test_freed_parameters_of_several_units_add_up_to_what_a_pruner_removes(
    encoder: mope.DualEncoder, pairs: mope.Pairs
) -> None:
    units = units_of(encoder, groups=54)
    before = parameters(encoder)
    sizes = {unit: freed_parameters(encoder, unit) for unit in units}
    table = mope.score(encoder, pairs, progress=False)
    mope.prune(encoder, mope.MoPEImportance(encoder, table=table), head_ratio=0.5, ffn_ratio=0.5, global_pruning=True)
    expected = 0
    for unit, size in sizes.items():
        if unit.kind == "head" and unit.index < encoder.removed[f"{unit.tower}.heads"][unit.layer]:
            expected += size
    one_neuron = {unit.tower: sizes[unit] // len(unit.channels) for unit in units if unit.kind == "neurons"}
    expected += sum(sum(encoder.removed[f"{tower}.neurons"]) * size for tower, size in one_neuron.items())
    assert before - parameters(encoder) == expected


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 10**6), together=st.sampled_from([0.0, 1.0, -1.0]))
def test_full_joint_greedy_is_brute_force(seed: int, together: float) -> None:
    units = units_of(ENCODER)
    meter = FakeMeter(units, seed, together=together)
    path = joint_path(meter, ENCODER, units, lazy=False)
    expected = brute_force(meter, ENCODER, units)
    assert not meter.removed
    assert [unit for unit, _ in path] == [unit for unit, _ in expected]
    assert [loss.value for _, loss in path] == pytest.approx([value for _, value in expected])


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_lazy_is_full_where_increments_only_grow(seed: int) -> None:
    units = enumerate_units(ENCODER, ("head",), {}, 1, BOTH)
    lazy, full = (FakeMeter(units, seed, together=0.3) for _ in range(2))
    assert joint_path(lazy, ENCODER, units) == joint_path(full, ENCODER, units, lazy=False)
    assert len(units) <= lazy.evaluations < full.evaluations == len(units) * (len(units) + 1) / 2


def test_additive_losses_give_the_order_of_loss_per_parameter_within_each_mlps_own_order(
    encoder: mope.DualEncoder,
) -> None:
    units = units_of(encoder)
    meter = FakeMeter(units, 0, together=0.0)
    order = [unit for unit, _ in joint_path(meter, encoder, units)]
    assert sorted(map(units.index, order)) == list(range(len(units)))
    for layer in encoder.layers:
        groups = [u.index for u in order if (u.kind, u.tower, u.layer) == ("neurons", layer.tower, layer.index)]
        assert groups == sorted(groups)
    slope = {unit: float(meter.own[i]) / freed_parameters(encoder, unit) for i, unit in enumerate(units)}
    heads = [unit for unit in order if unit.kind == "head"]
    assert heads == sorted(heads, key=slope.__getitem__)
    by_loss = sorted(heads, key=lambda unit: meter.own[units.index(unit)])
    assert heads != by_loss, "choose a seed where the towers' head sizes matter"


def test_the_path_of_a_real_model_is_brute_force_over_masked_models(
    encoder: mope.DualEncoder, pairs: mope.Pairs
) -> None:
    units = units_of(encoder, groups=2)
    metric = mope.metrics.ContrastiveLoss(10.0)
    path = joint_path(Meter(PrefixEngine(encoder, keep=True), pairs, metric), encoder, units, lazy=False)
    dense, plain = value_of(encoder, pairs, metric), PlainEngine(encoder)

    def loss(gone: Sequence[Unit]) -> float:
        found = [plain.embeddings(t, x, [a for a in merged(gone) if a.tower == t]) for t, x in inputs]
        return dense - metric(*found)

    inputs: list[tuple[TowerName, torch.Tensor]] = [("image", pairs.images), ("text", pairs.tokens)]
    gone: list[Unit] = []
    done = 0.0
    for unit, found in path:
        slopes = {u: (loss([*gone, u]) - done) / freed_parameters(encoder, u) for u in nexts(units, gone)}
        assert slopes[unit] == pytest.approx(min(slopes.values()), abs=1e-9)
        gone.append(unit)
        done = loss(gone)
        assert found.value == pytest.approx(done, abs=1e-5)


def test_losses_along_the_path_are_those_of_the_pruned_model(encoder: mope.DualEncoder, pairs: mope.Pairs) -> None:
    units = units_of(encoder)
    metric = mope.metrics.ContrastiveLoss(10.0)
    path = joint_path(Meter(PrefixEngine(encoder, keep=True), pairs, metric), encoder, units)
    dense = value_of(encoder, pairs, metric)
    for cut in (3, 10, 20, len(path)):
        pruned = encoder
        for ablation in merged([unit for unit, _ in path[:cut]]):
            pruned = physically_without(pruned, ablation)
        assert path[cut - 1][1].value == pytest.approx(dense - value_of(pruned, pairs, metric), abs=1e-4)


def test_a_block_takes_its_units_along(encoder: mope.DualEncoder, pairs: mope.Pairs) -> None:
    units = units_of(encoder, ("head", "neurons", "block"))
    meter = FakeMeter([unit for unit in units if unit.kind != "block"], 0, together=0.0)
    meter.own[:] = 1.0
    one = next(i for i, unit in enumerate(meter.units) if (unit.tower, unit.layer, unit.kind) == ("image", 1, "head"))
    meter.own[one] = -5.0  # goes first, by itself
    path = joint_path(meter, encoder, units)
    assert path[0][0] == meter.units[one]
    # A block now frees more per unit of loss than its parts, because its norms and output biases go too.
    blocks = [i for i, (unit, _) in enumerate(path) if unit.kind == "block"]
    assert len(blocks) == 5
    assert len(path) == len(units) == len({unit for unit, _ in path})
    for i in blocks:
        block, loss = path[i]
        own = [u for u in units if u.kind != "block" and (u.tower, u.layer) == (block.tower, block.layer)]
        before = [unit for unit, _ in path[:i]]
        after = [u for u in own if u not in before]
        assert [unit for unit, _ in path[i + 1 : i + 1 + len(after)]] == after
        assert all(found == loss for _, found in path[i + 1 : i + 1 + len(after)])


def test_a_budget_ends_the_path_early(encoder: mope.DualEncoder) -> None:
    units = units_of(encoder)
    whole = joint_path(FakeMeter(units, 0, together=0.3), encoder, units)
    sizes = [freed_parameters(encoder, unit) for unit, _ in whole]
    for count in (1, 7, len(units)):
        for budget in (sum(sizes[:count]) - 1, sum(sizes[:count])):
            meter = FakeMeter(units, 0, together=0.3)
            assert joint_path(meter, encoder, units, budget=budget) == whole[:count]
            assert not meter.removed


def test_callbacks_come_for_each_unit(encoder: mope.DualEncoder) -> None:
    units = units_of(encoder, ("head", "neurons", "block"))
    evaluated, removed = [], []
    meter = FakeMeter([unit for unit in units if unit.kind != "block"], 0, together=0.3)
    path = joint_path(meter, encoder, units, evaluated=evaluated.append, removed=lambda *pair: removed.append(pair))
    assert removed == path
    assert len(evaluated) == meter.evaluations
    assert set(evaluated) <= set(units)


@pytest.fixture
def table(encoder: mope.DualEncoder, pairs: mope.Pairs) -> mope.ScoreTable:
    options = {"kinds": ("head", "neurons"), "groups": 3, "interaction": "joint", "progress": False}
    return mope.score(encoder, pairs, metric="contrastive_loss", **options)


def test_the_tables_scores_per_parameter_grow_along_the_path(table: mope.ScoreTable) -> None:
    slopes = torch.tensor([score.value / (score.parameters or 0) for score in table.scores])
    assert (slopes.diff() >= -1e-9).all()
    assert sum(score.value for score in table.scores) == pytest.approx(table.scores[-1].loss)


def test_every_budget_is_a_prefix_of_the_path(encoder: mope.DualEncoder, table: mope.ScoreTable) -> None:
    everything = sum(score.parameters or 0 for score in table.scores)
    for wanted in (1, 0.2, 0.5, 0.77, everything // 3, everything):
        found = table.first(wanted)
        assert found == list(table.scores[: len(found)])
        freed = [sum(score.parameters or 0 for score in part) for part in (found[:-1], found)]
        assert freed[0] < (wanted * everything if wanted < 1 else wanted) <= freed[1]
    for wanted in (0, -1, everything + 1):
        with pytest.raises(ValueError, match=rf"parameters must be more than 0 and at most {everything}"):
            table.first(wanted)


def test_blocks_free_what_is_left_of_them(encoder: mope.DualEncoder, pairs: mope.Pairs) -> None:
    options = {"kinds": ("head", "neurons", "block"), "groups": 3, "interaction": "joint", "progress": False}
    table = mope.score(encoder, pairs, metric="contrastive_loss", **options)
    blocks = [block.module for tower in encoder.towers.values() for block in tower.blocks]
    everything = sum(parameter.numel() for block in blocks for parameter in block.parameters())
    assert table.first(everything)
    with pytest.raises(ValueError, match=f"at most {everything}, all there is"):
        table.first(everything + 1)


@pytest.mark.parametrize("towers", [BOTH, ("text",)])
def test_a_path_that_stops_early_is_the_beginning_of_the_whole(
    encoder: mope.DualEncoder, pairs: mope.Pairs, towers: Sequence[TowerName]
) -> None:
    options = {"metric": "contrastive_loss", "kinds": ("head", "neurons", "block"), "groups": 3, "towers": towers}
    whole = mope.score(encoder, pairs, interaction="joint", progress=False, **options)
    table = mope.score(encoder, pairs, interaction="joint", progress=False, until=0.5, **options)
    assert [score.unit for score in table.scores] == [score.unit for score in whole.scores[: len(table.scores)]]
    assert 0 < len(table.scores) < len(whole.scores)
    assert table.settings["evaluations"] < whole.settings["evaluations"]


def test_where_a_path_stops_must_be_a_share(encoder: mope.DualEncoder, pairs: mope.Pairs) -> None:
    for until, interaction in ((0.0, "joint"), (1.5, "joint"), (0.5, "nested")):
        with pytest.raises(
            ValueError, match=f"until must be above 0 and at most 1, .*found {until} for '{interaction}'"
        ):
            mope.score(encoder, pairs, interaction=interaction, until=until, progress=False)


def test_a_pruner_removes_the_paths_beginning(encoder: mope.DualEncoder, table: mope.ScoreTable) -> None:
    layers = {(layer.tower, layer.index): layer.block for layer in encoder.layers}
    chosen = table.first(0.2)
    for (tower, layer), block in layers.items():  # a pruner leaves something of every layer
        mine = [s.unit for s in chosen if (s.unit.tower, s.unit.layer) == (tower, layer)]
        assert sum(unit.kind == "head" for unit in mine) < block.attention.num_units
        assert sum(len(unit.channels) for unit in mine if unit.kind == "neurons") < block.feed_forward.num_units
    counts = {kind: sum(score.unit.kind == kind for score in chosen) for kind in ("head", "neurons")}
    neurons = sum(len(score.unit.channels) for score in chosen if score.unit.kind == "neurons")
    now = encoder.counts()
    importance = mope.MoPEImportance(encoder, table=table, min_heads=1, min_neurons=1)
    asked = {"head_ratio": counts["head"] / now.heads, "ffn_ratio": neurons / now.neurons}
    mope.prune(encoder, importance, **asked, global_pruning=True)
    gone: dict[str, list[int]] = {name: [0] * len(values) for name, values in encoder.removed.items()}
    for score in chosen:
        unit = score.unit
        key, size = (f"{unit.tower}.heads", 1) if unit.kind == "head" else (f"{unit.tower}.neurons", len(unit.channels))
        gone[key][unit.layer] += size
    assert encoder.removed == gone


def test_other_tables_are_no_paths(encoder: mope.DualEncoder, pairs: mope.Pairs, table: mope.ScoreTable) -> None:
    heads = mope.score(encoder, pairs, metric="contrastive_loss", kinds=("head",), progress=False)
    with pytest.raises(ValueError, match=r"table must hold a joint path; found interaction='nested'"):
        heads.first(0.5)
    with pytest.raises(ValueError, match="tables must hold no joint path"):
        mope.ScoreTable.merge(table, heads)
