"""Importances as Torch-Pruning gets them: strict order, exact counts, fresh scores, and errors where there are none."""

import copy
import inspect
import itertools
import pickle
from typing import Any

import pytest
import torch
import torch_pruning as tp
from torch import Tensor

import torch_pruning_mope as mope
from tests.asserts import assert_strict_scores, assert_trains, unchanged, unchecked
from tests.unit.models import clip, pairs_for
from torch_pruning_mope import DualEncoder, MoPEImportance, WeightedImportance
from torch_pruning_mope.errors import MissingGradientsError, NonFiniteError, WrongModelError
from torch_pruning_mope.importance import _mope as importance_module

GLOBAL = pytest.mark.parametrize("global_pruning", [False, True])
STOCK: dict[str, Any] = {
    "magnitude": tp.importance.GroupMagnitudeImportance,
    "lamp": tp.importance.LAMPImportance,
    "random": tp.importance.RandomImportance,
    "taylor": tp.importance.GroupTaylorImportance,
    "hessian": tp.importance.GroupHessianImportance,
}


def _constant(images: Tensor, texts: Tensor) -> float:
    return 0.5


def _groups(encoder: DualEncoder) -> list[tuple[str, int, Any]]:
    """The group of all heads, then of all neurons, of each layer, with the channels per unit."""
    graph = encoder.dependency_graph()
    return [
        (
            kind,
            sublayer.unit_size,
            graph.get_pruning_group(
                sublayer.output, tp.prune_linear_in_channels, list(range(sublayer.output.in_features))
            ),
        )
        for layer in encoder.layers
        for kind, sublayer in (("head", layer.block.attention), ("neurons", layer.block.feed_forward))
    ]


def _importance(encoder: DualEncoder, pairs: mope.Pairs, name: str) -> Any:
    if name == "mope":
        return MoPEImportance(encoder, pairs, groups=4, progress=False)
    if name == "constant without rewiring":
        return MoPEImportance(
            encoder, pairs, groups=4, progress=False, metric=_constant, rewire="none", interaction="single"
        )
    return WeightedImportance(encoder, [(lambda group: torch.zeros(len(group[0].idxs)), 1.0)])


ALL = pytest.mark.parametrize("name", ["mope", "constant without rewiring", "zeros"])


@ALL
def test_scores_are_strictly_ordered_over_all_layers(encoder: DualEncoder, pairs: mope.Pairs, name: str) -> None:
    importance = _importance(encoder, pairs, name)
    values: dict[str, list[float]] = {"head": [], "neurons": []}
    best: dict[str, list[float]] = {"head": [], "neurons": []}
    for kind, size, group in _groups(encoder):
        scores = importance(group)
        assert_strict_scores(scores, len(group[0].idxs))
        units = scores.view(-1, size)
        assert torch.equal(units, units[:, :1].expand_as(units))
        values[kind] += units[:, 0].tolist()
        best[kind] += sorted(units[:, 0].tolist())[-importance.minimum[kind] :]
    for kind in values:
        assert len(set(values[kind])) == len(values[kind])
        # What each layer must keep is above everything that may go.
        assert sorted(best[kind]) == sorted(values[kind])[-len(best[kind]) :]


@ALL
@GLOBAL
def test_counts_are_exact_even_if_every_score_ties(
    encoder: DualEncoder, pairs: mope.Pairs, name: str, global_pruning: bool
) -> None:
    importance = _importance(encoder, pairs, name)
    arguments = encoder.pruner_arguments(head_ratio=0.5, ffn_ratio=0.3, global_pruning=global_pruning)
    tp.pruner.MetaPruner(encoder.model, importance=importance, **arguments).step()
    removed = encoder.removed
    heads, neurons = (sum(sum(v) for k, v in removed.items() if k.endswith(kind)) for kind in ("heads", "neurons"))
    assert (heads, neurons) == ((9, 83) if global_pruning else (3 * 2 + 2 * 2, 5 * 17))


def test_scores_keep_the_order_of_the_table(encoder: DualEncoder, pairs: mope.Pairs) -> None:
    """Heads: by score. Neurons: by their group's score, and within a group by the rewiring."""
    importance = MoPEImportance(
        encoder, pairs, groups=4, progress=False, metric="contrastive_loss", interaction="single"
    )
    table = importance.table
    for kind, size, group in _groups(encoder):
        tower = "image" if _name(encoder, group).startswith("visual") else "text"
        layer = int(_name(encoder, group).split("resblocks.")[1].split(".")[0])
        expected = [
            unit.unit.channels[::size]
            for unit in sorted(table.of(kind, tower, layer), key=lambda score: (score.value, score.unit.index))
        ]
        flat = [channel // size for channels in expected for channel in channels]
        assert importance(group).view(-1, size)[:, 0].argsort().tolist() == flat


def test_a_global_threshold_cuts_a_prefix_of_each_layers_groups(encoder: DualEncoder, pairs: mope.Pairs) -> None:
    importance = MoPEImportance(encoder, pairs, groups=8, progress=False, metric="contrastive_loss")
    orders = {
        (layer.tower, layer.index): [
            c for s in importance.table.of("neurons", layer.tower, layer.index) for c in s.unit.channels
        ]
        for layer in encoder.layers
    }
    arguments = encoder.pruner_arguments(ffn_ratio=0.5, global_pruning=True)
    pruner = tp.pruner.MetaPruner(encoder.model, importance=importance, **arguments)
    pruner.step()
    for name, _, indices in pruner.pruning_history():
        key = ("image" if name.startswith("visual") else "text", int(name.split("resblocks.")[1].split(".")[0]))
        assert set(indices) == set(orders[key][: len(indices)])


@pytest.mark.parametrize("minimum", [2, 3])
def test_layers_keep_their_minimum(encoder: DualEncoder, pairs: mope.Pairs, minimum: int) -> None:
    for layer in encoder.layers[:1]:
        with torch.no_grad():
            layer.block.attention.output.weight.mul_(1e-4)
    importance = WeightedImportance(
        encoder, [(tp.importance.GroupMagnitudeImportance(normalizer=None), 1.0)], min_heads=minimum, min_neurons=50
    )
    mope.prune(encoder, importance, head_ratio=0.15, global_pruning=True)
    assert min(layer.block.attention.num_units for layer in encoder.layers) >= min(minimum, 3)


# Re-scoring.


class _CountedScores:
    """Stands in for `score`, and counts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[int] = []
        original = importance_module.score_units

        def counted(encoder: DualEncoder, *args: Any, **kwargs: Any) -> Any:
            self.calls.append(encoder.counts().neurons)
            return original(encoder, *args, **kwargs)

        monkeypatch.setattr(importance_module, "score_units", counted)


@pytest.mark.parametrize(("steps", "global_pruning"), [(2, False), (3, True)])
def test_every_step_scores_the_model_once_as_it_is_then(
    encoder: DualEncoder, pairs: mope.Pairs, monkeypatch: pytest.MonkeyPatch, steps: int, global_pruning: bool
) -> None:
    counted = _CountedScores(monkeypatch)
    importance = MoPEImportance(encoder, pairs, groups=3, progress=False)
    left: list[int] = []
    arguments = encoder.pruner_arguments(
        head_ratio=0.5, ffn_ratio=0.5, iterative_steps=steps, global_pruning=global_pruning
    )
    pruner = tp.pruner.MetaPruner(encoder.model, importance=importance, **arguments)
    assert counted.calls == []  # nothing is scored before a pruner asks
    for _ in range(steps):
        left.append(encoder.counts().neurons)
        pruner.step()
    assert counted.calls == left


def _in_place(model: Any) -> None:
    with torch.no_grad():
        model.visual.proj.mul_(1.5)


def _through_data(model: Any) -> None:
    model.visual.proj.data.mul_(1.5)


def _replaced(model: Any) -> None:
    model.visual.proj = torch.nn.Parameter(1.5 * model.visual.proj.detach())


@pytest.mark.parametrize("change", [_in_place, _through_data, _replaced])
def test_changes_between_steps_are_noticed(
    encoder: DualEncoder, pairs: mope.Pairs, monkeypatch: pytest.MonkeyPatch, change: Any
) -> None:
    counted = _CountedScores(monkeypatch)
    importance = MoPEImportance(encoder, pairs, groups=2, progress=False)
    groups = [group for _, _, group in _groups(encoder)]
    for expected in (1, 2):
        for group in (*groups, *groups):  # two steps: each asks once for each group
            importance(group)
        table = importance.table
        assert len(counted.calls) == expected
        change(encoder.model)
    assert importance.table is not table
    assert len(counted.calls) == 3


def test_pickled_importances_prune_alike(encoder: DualEncoder, pairs: mope.Pairs) -> None:
    scored, fresh = (MoPEImportance(encoder, pairs, groups=2, progress=False) for _ in range(2))
    assert scored(_groups(encoder)[0][2]) is not None
    copies = [pickle.loads(pickle.dumps(scored)), pickle.loads(pickle.dumps(fresh)), copy.deepcopy(scored)]
    mope.prune(encoder, scored, head_ratio=0.5, ffn_ratio=0.5, global_pruning=True)
    for other in copies:
        assert sum(other.encoder.removed["image.heads"]) == 0
        mope.prune(other.encoder, other, head_ratio=0.5, ffn_ratio=0.5, global_pruning=True)
        assert other.encoder.removed == encoder.removed
        for name, tensor in encoder.model.state_dict().items():
            assert torch.equal(tensor, other.encoder.model.state_dict()[name])


def test_one_importance_prunes_again_what_it_has_pruned(encoder: DualEncoder, pairs: mope.Pairs) -> None:
    importance = MoPEImportance(encoder, pairs, groups=2, progress=False)
    for left in (2, 1):
        mope.prune(encoder, importance, head_ratio=0.5, towers=("image",))
        assert [layer.block.attention.num_units for layer in encoder.layers[:3]] == [left] * 3
        assert importance.table.weights == mope.scoring.fingerprint(encoder.model)


def test_calibration_batches_are_read_once(encoder: DualEncoder, pairs: mope.Pairs) -> None:
    generator = iter([(pairs.images[:5], pairs.tokens[:5]), (pairs.images[5:], pairs.tokens[5:])])
    importance = MoPEImportance(encoder, generator, groups=2, progress=False)
    mope.prune(encoder, importance, head_ratio=0.25, iterative_steps=2)
    assert encoder.removed["image.heads"] == [1, 1, 1]


# Tables.


def test_a_table_instead_of_pairs(encoder: DualEncoder, pairs: mope.Pairs) -> None:
    table = mope.score(encoder, pairs, groups=4, progress=False)
    twin = DualEncoder(copy.deepcopy(encoder.model))
    for each, importance in (
        (encoder, MoPEImportance(encoder, pairs, groups=4, progress=False)),
        (twin, MoPEImportance(twin, table=table)),
    ):
        mope.prune(each, importance, head_ratio=0.4, ffn_ratio=0.4, global_pruning=True)
    assert encoder.removed == twin.removed
    for name, tensor in encoder.model.state_dict().items():
        assert torch.equal(tensor, twin.model.state_dict()[name])


def test_a_table_alone_is_for_one_step(encoder: DualEncoder, pairs: mope.Pairs) -> None:
    importance = MoPEImportance(encoder, table=mope.score(encoder, pairs, groups=2, progress=False))
    with pytest.raises(WrongModelError, match=r"from before its weights changed\. Pass pairs as well"):
        mope.prune(encoder, importance, head_ratio=0.5, iterative_steps=2)


def test_a_table_with_pairs_serves_all_steps(encoder: DualEncoder, pairs: mope.Pairs) -> None:
    table = mope.score(encoder, pairs, groups=2, progress=False)
    importance = MoPEImportance(encoder, pairs, table=table, groups=2, progress=False)
    assert importance.table is table
    assert mope.prune(encoder, importance, head_ratio=0.5, iterative_steps=2).heads == 10


def test_a_table_of_other_weights_is_refused(encoder: DualEncoder, pairs: mope.Pairs) -> None:
    other = DualEncoder(clip(seed=1))
    table = mope.score(other, pairs, groups=2, progress=False)
    with unchanged(encoder.model), pytest.raises(WrongModelError, match="table must be of the model's own weights"):
        MoPEImportance(encoder, table=table)


def test_neither_pairs_nor_table(encoder: DualEncoder) -> None:
    with pytest.raises(ValueError, match="pairs must be given, or a table; found neither"):
        MoPEImportance(encoder)


# Fallback and what is not scored.


@pytest.mark.parametrize("kinds", [("head",), ("neurons",)])
def test_what_is_not_scored_goes_to_the_fallback_or_stays(encoder: DualEncoder, pairs: mope.Pairs, kinds: Any) -> None:
    without = MoPEImportance(encoder, pairs, groups=3, kinds=kinds, progress=False)
    fallback = tp.importance.GroupMagnitudeImportance()
    with_fallback = MoPEImportance(encoder, pairs, groups=3, kinds=kinds, progress=False, fallback=fallback)
    for kind, _, group in _groups(encoder):
        assert (without(group) is None) == (kind not in kinds)
        scores = with_fallback(group)
        assert_strict_scores(scores, len(group[0].idxs))
        if kind not in kinds:
            assert scores.argsort().tolist() == fallback(group).argsort(stable=True).tolist()


def test_the_residual_width_goes_to_the_fallback(encoder: DualEncoder, pairs: mope.Pairs) -> None:
    graph = encoder.dependency_graph()
    group = graph.get_pruning_group(encoder.model.visual.conv1, tp.prune_conv_out_channels, list(range(40)))
    assert MoPEImportance(encoder, pairs, groups=2, progress=False)(group) is None
    scores = MoPEImportance(encoder, pairs, groups=2, progress=False, fallback=lambda group: torch.zeros(40))(group)
    assert scores is not None
    assert scores.tolist() == sorted(set(scores.tolist()))  # ties strictly ordered
    none = MoPEImportance(encoder, pairs, groups=2, progress=False, fallback=lambda group: None)
    assert none(group) is None


# Torch-Pruning's own criteria.


def _prepare(encoder: DualEncoder, pairs: mope.Pairs, name: str) -> Any:
    if name in {"taylor", "hessian"}:
        encoder.accumulate_gradients(pairs, squared=name == "hessian")
    return STOCK[name]()


@pytest.mark.parametrize("name", STOCK)
def test_stock_criteria_alone_by_metapruner(encoder: DualEncoder, pairs: mope.Pairs, name: str) -> None:
    criterion = _prepare(encoder, pairs, name)
    arguments = encoder.pruner_arguments(head_ratio=0.5, ffn_ratio=0.5, width_ratio=0.25)
    tp.pruner.MetaPruner(encoder.model, importance=criterion, **arguments).step()
    assert encoder.removed["image.heads"] == [2, 2, 2]
    assert encoder.removed["text.neurons"] == [27, 27]
    assert encoder.widths == {"image": 30, "text": 27}
    assert_trains(encoder, pairs)


@pytest.mark.parametrize(("name", "global_pruning"), list(zip(STOCK, itertools.cycle((True, False)), strict=False)))
def test_stock_criteria_weighed_with_mope(
    encoder: DualEncoder, pairs: mope.Pairs, name: str, global_pruning: bool
) -> None:
    criterion = _prepare(encoder, pairs, name)
    own = MoPEImportance(encoder, pairs, groups=4, progress=False)
    importance = WeightedImportance(encoder, [(own, 2.0), (criterion, 1.0)], fallback=criterion)
    removed = mope.prune(
        encoder, importance, head_ratio=0.4, ffn_ratio=0.3, width_ratio=0.2, global_pruning=global_pruning
    )
    expected = (8, 83, 16) if global_pruning else (3 * 2 + 2 * 2, 5 * 17, 16)
    assert (removed.heads, removed.neurons, removed.width) == expected


@pytest.mark.parametrize("name", ["magnitude", "lamp", "taylor", "hessian"])
def test_a_single_criterion_keeps_its_order(encoder: DualEncoder, pairs: mope.Pairs, name: str) -> None:
    criterion = _prepare(encoder, pairs, name)
    importance = WeightedImportance(encoder, [(criterion, 3.0)])
    for _, size, group in _groups(encoder):
        expected = criterion(group).view(-1, size).mean(1)
        assert importance(group).view(-1, size)[:, 0].argsort().tolist() == expected.argsort(stable=True).tolist()


def test_weights_weigh(encoder: DualEncoder, pairs: mope.Pairs) -> None:
    """Each criterion over its mean magnitude, times its weight."""

    def rising(group: Any) -> Tensor:
        return 1 + torch.arange(len(group[0].idxs)).float()

    def falling(group: Any) -> Tensor:
        return 1e6 * rising(group).flip(0)

    for weights, expected in (((1.0, 3.0), True), ((3.0, 1.0), False)):
        importance = WeightedImportance(encoder, [(rising, weights[0]), (falling, weights[1])])
        _, _, group = _groups(encoder)[1]
        scores = importance(group)[:-1]  # but for the spared best
        assert ((scores.diff() < 0).sum() > (scores.diff() > 0).sum()) == expected


@pytest.mark.parametrize("name", ["taylor", "hessian"])
@pytest.mark.parametrize("how", ["wrapped", "fallback"])
def test_missing_gradients_are_named(encoder: DualEncoder, pairs: mope.Pairs, name: str, how: str) -> None:
    """Torch-Pruning reads .grad without looking."""
    criterion = STOCK[name]()
    if how == "wrapped":
        importance: Any = WeightedImportance(encoder, [(criterion, 1.0)])
    else:
        importance = MoPEImportance(encoder, pairs, groups=2, progress=False, fallback=criterion)
    hint = (
        r"accumulate_gradients\(pairs, squared=True\)" if name == "hessian" else r"accumulate_gradients\(pairs\) before"
    )
    with (
        unchanged(encoder.model),
        pytest.raises(MissingGradientsError, match=rf"needs gradients in \.grad; found None.*{hint}"),
    ):
        mope.prune(encoder, importance, head_ratio=0.5, width_ratio=0.2)


def test_stock_taylor_without_gradients_fails_in_torch_pruning(encoder: DualEncoder) -> None:
    with pytest.raises((AttributeError, TypeError), match="NoneType"):
        tp.importance.GroupTaylorImportance()(_groups(encoder)[1][2])


def test_hessian_with_gradients_of_its_own_is_accepted(encoder: DualEncoder, pairs: mope.Pairs) -> None:
    """Someone who fills GroupHessianImportance as its documentation says is not sent away for an empty .grad."""
    encoder.accumulate_gradients(pairs)
    criterion = tp.importance.GroupHessianImportance()
    criterion.accumulate_grad(encoder.model)
    assert mope.prune(encoder, WeightedImportance(encoder, [(criterion, 1.0)]), head_ratio=0.5).heads == 10


def test_gradients_anew_between_steps(encoder: DualEncoder, pairs: mope.Pairs) -> None:
    encoder.accumulate_gradients(pairs)
    importance = WeightedImportance(encoder, [(tp.importance.GroupTaylorImportance(), 1.0)])
    before = importance(_groups(encoder)[0][2]).clone()
    encoder.accumulate_gradients(mope.Pairs(pairs.images.flip(0), pairs.tokens))
    assert not torch.equal(importance(_groups(encoder)[0][2]), before)


# No leaks.


def test_arguments_are_fresh(encoder: DualEncoder) -> None:
    """Torch-Pruning writes to what it is given, and its defaults are shared."""
    first, second = (encoder.pruner_arguments(head_ratio=0.5, ffn_ratio=0.5) for _ in range(2))
    for name, value in first.items():
        if isinstance(value, dict | list):
            assert value is not second[name], name


def test_two_pruners_in_sequence_know_nothing_of_each_other() -> None:
    def defaults() -> dict[str, Any]:
        parameters = inspect.signature(tp.pruner.MetaPruner.__init__).parameters
        return {name: dict(p.default) for name, p in parameters.items() if isinstance(p.default, dict)}

    assert set(map(len, defaults().values())) == {0}
    for seed in (0, 1):
        encoder = DualEncoder(clip(seed=seed))
        pairs = pairs_for(encoder.model, 6)
        pruner = tp.pruner.MetaPruner(
            encoder.model,
            importance=MoPEImportance(encoder, pairs, groups=2, progress=False),
            **encoder.pruner_arguments(head_ratio=0.5),
        )
        pruner.step()
        modules = set(encoder.model.modules())
        for known in (pruner.num_heads, pruner.out_channel_groups, pruner.in_channel_groups):
            assert set(known) <= modules
        assert encoder.removed["image.heads"] == [2, 2, 2]
    assert set(map(len, defaults().values())) == {0}


def test_torch_prunings_default_dictionaries_are_shared(encoder: DualEncoder) -> None:
    arguments = encoder.pruner_arguments(head_ratio=0.5)
    del arguments["out_channel_groups"]
    shared = inspect.signature(tp.pruner.MetaPruner.__init__).parameters["out_channel_groups"].default
    try:
        tp.pruner.MetaPruner(encoder.model, importance=tp.importance.RandomImportance(), **arguments)
        assert shared
    finally:
        shared.clear()


# Misuse.


def test_another_models_importance_is_refused(encoder: DualEncoder, pairs: mope.Pairs) -> None:
    other = DualEncoder(clip(seed=1))
    importance = MoPEImportance(other, pairs, groups=2, progress=False)
    pruner = tp.pruner.MetaPruner(encoder.model, importance=importance, **encoder.pruner_arguments(head_ratio=0.5))
    with (
        unchanged(encoder.model),
        unchanged(other.model),
        pytest.raises(WrongModelError, match="importance must be built for the model that the pruner prunes"),
    ):
        pruner.step()


@pytest.mark.parametrize("kind", [MoPEImportance, WeightedImportance])
def test_a_bare_model_is_refused(kind: Any, encoder: DualEncoder, pairs: mope.Pairs) -> None:
    extra = pairs if kind is MoPEImportance else [(tp.importance.RandomImportance(), 1.0)]
    with pytest.raises(TypeError, match=r"encoder must be a DualEncoder; found CLIP\. Wrap the model"):
        _construct(kind, encoder.model, extra)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"fallback": 3}, TypeError, "fallback must be a Torch-Pruning importance; found int"),
        ({"min_heads": 0}, ValueError, "min_heads and min_neurons must be at least 1; found 0 and 2"),
        ({"min_neurons": -2}, ValueError, "found 1 and -2"),
    ],
)
def test_nonsense_arguments(encoder: DualEncoder, arguments: dict[str, Any], error: Any, match: str) -> None:
    with pytest.raises(error, match=match):
        _construct(WeightedImportance, encoder, [(tp.importance.RandomImportance(), 1.0)], **arguments)


@pytest.mark.parametrize(
    "criteria", [[], [(tp.importance.RandomImportance(), 0.0)], [(tp.importance.RandomImportance(), -1.0)], [(3, 1.0)]]
)
def test_criteria_must_be_callable_and_weigh_something(encoder: DualEncoder, criteria: Any) -> None:
    with pytest.raises(ValueError, match="criteria must be a non-empty sequence"):
        WeightedImportance(encoder, criteria)


def test_taylor_and_hessian_do_not_mix(encoder: DualEncoder) -> None:
    both = [(tp.importance.GroupTaylorImportance(), 1.0), (tp.importance.GroupHessianImportance(), 1.0)]
    with pytest.raises(ValueError, match="must not mix Taylor"):
        WeightedImportance(encoder, both)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_scores_that_are_no_numbers_are_refused(encoder: DualEncoder, bad: float) -> None:
    importance = WeightedImportance(encoder, [(lambda group: torch.full((len(group[0].idxs),), bad), 1.0)])
    with unchanged(encoder.model), pytest.raises(NonFiniteError, match="scores must be finite"):
        mope.prune(encoder, importance, head_ratio=0.5)


def test_a_criterion_that_skips_heads_is_refused(encoder: DualEncoder) -> None:
    importance = WeightedImportance(encoder, [(lambda group: None, 1.0)])
    with (
        unchanged(encoder.model),
        pytest.raises(ValueError, match="criteria must score every head and neuron; function skips"),
    ):
        mope.prune(encoder, importance, head_ratio=0.5)


def _construct(kind: Any, *args: Any, **kwargs: Any) -> Any:
    """Without the run-time type check of the tests."""
    instance = kind.__new__(kind)
    original, mope.importance.UnitImportance.__init__ = (
        mope.importance.UnitImportance.__init__,
        unchecked(mope.importance.UnitImportance.__init__),
    )  # type: ignore[method-assign]
    try:
        unchecked(kind.__init__)(instance, *args, **kwargs)
    finally:
        mope.importance.UnitImportance.__init__ = original  # type: ignore[method-assign]
    return instance


def _name(encoder: DualEncoder, group: Any) -> str:
    names = {module: name for name, module in encoder.model.named_modules()}
    return names[group[0].dep.target.module]
