"""Scoring for a cut, by way of ``score``: what it decides is what the exact table says."""

from pathlib import Path
from typing import Any

import pytest
import torch

import torch_pruning_mope as mope
from tests.asserts import unchanged
from tests.unit.models import clip, pairs_for
from torch_pruning_mope.scoring import Meter

OPTIONS: dict[str, Any] = {"metric": "contrastive_loss", "interaction": "single", "groups": 3, "progress": False}


@pytest.fixture(scope="module")
def wide() -> tuple[mope.DualEncoder, mope.Pairs]:
    """Enough images for two looks before the last."""
    encoder = mope.DualEncoder(clip())
    return encoder, pairs_for(encoder.model, 90)


@pytest.mark.parametrize("kinds", [("head",), ("head", "neurons", "block")])
def test_without_a_budget_the_exact_tables_cut_is_found(wide: Any, kinds: tuple[str, ...]) -> None:
    encoder, pairs = wide
    exact = mope.score(encoder, pairs, kinds=kinds, **OPTIONS)
    with unchanged(encoder.model):
        found = mope.score(encoder, pairs, kinds=kinds, cut=dict.fromkeys(kinds, 0.4), **OPTIONS)
    assert [score.unit for score in found.scores] == [score.unit for score in exact.scores]
    for kind in kinds:
        count = -(-2 * len(exact.of(kind)) // 5)  # the ceiling, as a pruner removes
        gone = {score.unit for score in sorted(exact.of(kind), key=lambda score: score.value)[:count]}
        assert {score.unit for score in found.of(kind) if score.removed} == gone
        assert all(score.side == ("removed" if score.removed else "kept") for score in found.of(kind))
    by_unit = {score.unit: score for score in exact.scores}
    for score in found.scores:
        if score.images == 90:
            assert score.value == pytest.approx(by_unit[score.unit].value, abs=1e-5)
            assert score.stderr == 0
    seen = sum(score.images or 0 for score in found.scores)
    assert found.settings["evaluations"] == pytest.approx(seen / 90)
    assert seen <= 90 * len(found.scores)
    assert found.dense == exact.dense


def test_a_budget_is_kept_and_what_it_leaves_open_is_said(wide: Any) -> None:
    encoder, pairs = wide
    table = mope.score(encoder, pairs, kinds=("head",), cut={"head": 7}, budget=0.5, **OPTIONS)
    assert sum(score.removed or False for score in table.scores) == 7
    assert sum(score.images or 0 for score in table.scores) <= 0.5 * 90 * len(table.scores)
    assert any(score.side == "undecided" for score in table.scores)
    assert all(score.stderr > 0 for score in table.scores if (score.images or 0) < 90)


def test_a_pruner_removes_what_the_cut_removes(wide: Any, tmp_path: Path) -> None:
    encoder, pairs = wide
    encoder = mope.DualEncoder(clip())
    mope.score(encoder, pairs, kinds=("head",), cut={"head": 0.3}, budget=0.5, path=tmp_path / "table.json", **OPTIONS)
    table = mope.ScoreTable.load(tmp_path / "table.json")
    gone = {name: [0] * len(tower.blocks) for name, tower in encoder.towers.items()}
    for score in table.scores:
        gone[score.unit.tower][score.unit.layer] += bool(score.removed)
    mope.prune(encoder, mope.MoPEImportance(encoder, table=table), head_ratio=0.3, global_pruning=True)
    for name, counts in gone.items():
        assert encoder.removed[f"{name}.heads"] == counts


def test_what_was_sampled_is_not_sampled_again(wide: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, pairs = wide
    whole = mope.score(encoder, pairs, kinds=("head",), cut={"head": 0.4}, **OPTIONS)
    sampled = Meter.sampled
    computed: list[int] = []

    def counting(self: Any, *args: Any) -> Any:
        before = self.computed
        result = list(sampled(self, *args))
        computed.append(self.computed - before)
        if len(computed) == 3:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(Meter, "sampled", counting)
    options = {"kinds": ("head",), "cut": {"head": 0.4}, "path": tmp_path / "table.json", **OPTIONS}
    with pytest.raises(KeyboardInterrupt):
        mope.score(encoder, pairs, **options)
    assert mope.score(encoder, pairs, **options) == whole
    assert computed[3:6] == [0, 0, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cut": {"block": 1}}, r"cut must say how many go of each of the kinds that are scored, \['head'\]"),
        ({"cut": {"head": 0}}, "cut must hold counts, or shares below 1, of more than 0; found"),
        ({"cut": {"head": 2.5}}, "cut must hold counts, or shares below 1, of more than 0; found"),
        ({"cut": {"head": 99}}, "remove must be at least 1 and less than the number of ablations"),
        ({"cut": {"head": 3}, "interaction": "greedy"}, "cut needs units that are scored one at a time"),
        ({"cut": {"neurons": 3}, "kinds": ("neurons",), "interaction": "nested"}, "Pass interaction='single'"),
        ({"cut": {"head": 3}, "confidence": 1.0}, "confidence must lie strictly between 0 and 1; found 1.0"),
        ({"cut": {"head": 3}, "budget": 0.0}, "budget must lie between 0 and 1; found 0.0"),
        ({"cut": {"head": 3}, "budget": 0.1}, "budget must lie between 0.356, what the first stage takes, and 1"),
    ],
)
def test_refusals(wide: Any, arguments: dict[str, Any], message: str) -> None:
    encoder, pairs = wide
    with pytest.raises(ValueError, match=message):
        mope.score(encoder, pairs, **(OPTIONS | {"kinds": ("head",)} | arguments))


def test_metrics_without_shares_are_refused(wide: Any) -> None:
    encoder, pairs = wide
    with pytest.raises(mope.MetricError, match="metric must have per-image shares"):
        mope.score(
            encoder,
            pairs,
            **(OPTIONS | {"kinds": ("head",), "metric": lambda i, t: float(torch.trace(i @ t.T))}),
            cut={"head": 3},
        )
