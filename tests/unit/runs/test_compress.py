"""Compression: what goes, what is kept of it, and that it goes on where it stopped."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

import torch_pruning_mope as mope
from tests.asserts import unchanged, unchecked
from tests.unit import zoo
from tests.unit.models import clip, pairs_for
from torch_pruning_mope.cost import footprints
from torch_pruning_mope.runs import _pipeline as steps
from torch_pruning_mope.runs import compress
from torch_pruning_mope.runs._compress import _shares

QUICK: dict[str, Any] = {"groups": 2, "progress": False}


@pytest.fixture
def encoder() -> mope.DualEncoder:
    """Two layers and one."""
    return mope.DualEncoder(clip(vision={"layers": 2}, text={"layers": 1}))


@pytest.fixture
def pairs(encoder: mope.DualEncoder) -> mope.Pairs:
    """Few pairs."""
    return pairs_for(encoder.model, 6)


def left(encoder: mope.DualEncoder, tower: str | None = None) -> int:
    return sum(size.parameters for name, size in footprints(encoder).items() if tower in {None, name})


def bits(encoder: mope.DualEncoder) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in encoder.model.state_dict().items()}


def test_stages_lead_to_the_budget_and_end_in_one_refit_of_the_dense_weights(
    encoder: mope.DualEncoder, pairs: mope.Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every stage scores, on a joint path, the model that the last one left."""
    seen: list[Any] = []
    sizes: list[int] = []

    def planned(*args: Any, **settings: Any) -> Any:
        seen.append(mope.make_plan(*args, **settings))
        return seen[-1]

    def scored(of: mope.DualEncoder, *args: Any, **settings: Any) -> mope.ScoreTable:
        sizes.append(left(of))
        assert settings["interaction"] == "joint"
        return mope.score(of, *args, **settings)

    monkeypatch.setattr(steps, "make_plan", planned)
    monkeypatch.setattr(steps, "score", scored)
    whole, more = left(encoder), pairs_for(encoder.model, 40, seed=5)
    with unchanged(encoder.model):
        small = compress(encoder.model, pairs, parameters="40%", stages=[0.8, 0.5], reconstruct_pairs=more, **QUICK)
    assert 0.35 * whole < left(small) <= 0.4 * whole
    assert [set(plan.settings["budgets"]) for plan in seen] == [{"parameters"}] * 3
    assert sizes[0] == whole > sizes[1] > sizes[2]
    assert torch.isfinite(small.embed("image", pairs.images)).all()
    assert sum(map(sum, small.removed.values())) == sum(
        getattr(encoder.counts(), kind) - getattr(small.counts(), kind) for kind in ("heads", "neurons")
    )
    # The same by hand: each plan on what the one before it left, the weights refitted once, from the dense ones.
    by_hand = mope.DualEncoder(copy.deepcopy(encoder.model))
    for plan in seen:
        mope.remove_units(by_hand, plan.units)
    mope.reconstruct(by_hand, encoder, more, progress=False)
    assert bits(by_hand) == bits(small)


@pytest.mark.parametrize(
    ("budget", "options"),
    [
        ({"multiply_adds": "60%"}, {"round_to": 8, "min_heads": 1}),
        ({"parameters": {"text": "70%"}}, {"kinds": ("head", "neurons", "block"), "stages": 2}),
        ({"parameters": "70%", "multiply_adds": "60%"}, {"uniform": True}),
    ],
)
def test_budgets_hold(encoder: mope.DualEncoder, pairs: mope.Pairs, budget: dict[str, Any], options: Any) -> None:
    before = footprints(encoder)
    small = compress(encoder, pairs, **budget, **options, **QUICK)
    after = footprints(small)
    for measure, amount in budget.items():
        towers = list(amount) if isinstance(amount, dict) else ["image", "text"]
        share = float((amount["text"] if isinstance(amount, dict) else amount).rstrip("%")) / 100
        now, whole = (sum(getattr(sizes[tower], measure) for tower in towers) for sizes in (after, before))
        assert now <= share * whole
    if "text" in str(budget):
        assert after["image"] == before["image"]
    if options.get("round_to"):
        assert all(layer.block.feed_forward.num_units in {0, 8, 16, 24, 32, 40, 48, 54, 56} for layer in small.layers)
        assert all(layer.block.attention.num_units for layer in small.layers)
    if options.get("uniform"):
        for tower in ("image", "text"):
            assert len({layer.block.feed_forward.num_units for layer in small.layers if layer.tower == tower}) == 1


def test_another_family() -> None:
    encoder = mope.DualEncoder(zoo.build("SigLIP"))
    whole = left(encoder)
    small = compress(encoder, zoo.pairs_of(encoder, 8), parameters="80%", min_heads=1, **QUICK)
    assert left(small) <= 0.8 * whole


class _Killed(BaseException):
    pass


@pytest.fixture(scope="module")
def expected() -> dict[str, bytes]:
    """The result of a run that nothing interrupts."""
    model = clip(vision={"layers": 2}, text={"layers": 1})
    return bits(compress(model, pairs_for(model, 6), parameters="50%", stages=2, **QUICK))


@pytest.mark.parametrize("at", ["score", "make_plan", "reconstruct"])
def test_it_goes_on_to_the_same_bits(
    encoder: mope.DualEncoder,
    pairs: mope.Pairs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    at: str,
    expected: dict[str, bytes],
) -> None:
    arguments: dict[str, Any] = {"parameters": "50%", "stages": 2, "path": tmp_path / "run", **QUICK}
    original, calls = getattr(steps, at), 0

    def killed(*args: Any, **settings: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise _Killed
        return original(*args, **settings)

    with monkeypatch.context() as patched:
        patched.setattr(steps, at, killed)
        with pytest.raises(_Killed):
            compress(encoder, pairs, **arguments)
    assert (tmp_path / "run/stage-1/plan.json").exists()
    counted: list[str] = []
    monkeypatch.setattr(steps, "score", lambda *a, **k: counted.append("score") or mope.score(*a, **k))
    assert bits(compress(encoder, pairs, **arguments)) == expected
    scores_left = {"score": 1, "make_plan": 1, "reconstruct": 0}[at]
    assert len(counted) == scores_left
    if at != "score":
        return
    assert bits(compress(encoder, pairs, **arguments)) == expected  # done: rebuilt without a score
    assert len(counted) == scores_left
    with pytest.raises(mope.errors.WrongModelError, match="has other weights"):
        compress(clip(seed=1), pairs, **arguments)
    with pytest.raises(mope.errors.WrongModelError, match="has other parameters"):
        compress(encoder, pairs, **arguments | {"parameters": "40%"})


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({}, "one of parameters, multiply_adds and latency must be given"),
        ({"parameters": "1%"}, r"budgets must leave parameters of at least [\d.]+%, the least"),
        ({"parameters": "50%", "stages": 0}, "stages must be 'auto', a number of at least 1"),
        ({"parameters": "50%", "stages": [0.3, 0.6]}, "or decreasing shares between 0 and 1"),
    ],
)
def test_refused_before_anything_is_scored(
    encoder: mope.DualEncoder, pairs: mope.Pairs, tmp_path: Path, arguments: Any, match: str
) -> None:
    with unchanged(encoder.model), pytest.raises(ValueError, match=match):
        compress(encoder, pairs, path=tmp_path / "run", **arguments, **QUICK)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("goal", "expected"),
    [
        (0.45, []),
        (0.4, [0.5]),
        (0.2, [0.5, 0.3]),
        (0.1, [0.5, 0.3, 0.2, 0.14]),
        (0.0, [0.5, 0.3, 0.2, 0.14, 0.1, 0.07, 0.05]),
    ],
)
def test_automatic_stages(goal: float, expected: list[float]) -> None:
    assert _shares("auto", goal) == expected


@pytest.mark.parametrize("stages", ["three", "a", None, 1.5, True, [1.0], [0.5, 0.5], [2]])
def test_other_stages_are_refused(stages: Any) -> None:
    with pytest.raises(
        ValueError, match="stages must be 'auto', a number of at least 1, or decreasing shares between 0 and 1"
    ):
        unchecked(_shares)(stages, 0.1)
