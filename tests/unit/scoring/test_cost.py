"""Estimated cost of scoring, against counting what is really computed."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import torch_pruning_mope as mope
from tests.asserts import unchanged
from tests.unit.models import clip, pairs_for
from torch_pruning_mope.cli import app
from torch_pruning_mope.cost import count_multiply_adds
from torch_pruning_mope.scoring import PlainEngine, PrefixEngine, enumerate_units, single_ablation


@pytest.mark.parametrize("kinds", [("head",), ("neurons",), ("head", "neurons", "block")])
def test_multiply_adds_are_those_of_the_engines(kinds: Any) -> None:
    encoder = mope.DualEncoder(clip())
    pairs = pairs_for(encoder.model, 8)
    units = enumerate_units(encoder, kinds, {}, 4, ("image", "text"))
    inputs: dict[Any, Any] = {"image": pairs.images, "text": pairs.tokens}

    def counted(engine: Any) -> float:
        engine._batch_sizes = {"image": 8, "text": 8}  # the look at memory needs is not part of it

        def run() -> None:
            for tower, x in inputs.items():
                engine.embeddings(tower, x)
                mine = [single_ablation(unit) for unit in units if unit.tower == tower]
                list(engine.ablations(tower, x, mine))

        return count_multiply_adds(run)

    with unchanged(encoder.model):
        cost = mope.estimate_cost(encoder, pairs, kinds=kinds, groups=4, batch_size=8, repeats=1)
    # Taking channels out of a recorded output is left out of the estimate; a sixth or less in so small a model.
    assert cost.multiply_adds <= counted(PrefixEngine(encoder, batch_size=8)) <= 1.2 * cost.multiply_adds
    plain = PlainEngine(encoder)
    once = sum(count_multiply_adds(partial(plain.embeddings, tower, x)) for tower, x in inputs.items())
    assert cost.plain_multiply_adds == once * len(units)
    assert cost.evaluations == len(units)


def test_time_grows_with_images_and_falls_with_devices(encoder: mope.DualEncoder) -> None:
    pairs = pairs_for(encoder.model, 16)
    one = mope.estimate_cost(encoder, pairs, rewire="none")
    many = mope.estimate_cost(encoder, pairs, rewire="none", num_images=1600)
    shared = mope.estimate_cost(encoder, pairs, rewire="none", num_images=1600, devices=4)
    assert many.multiply_adds == pytest.approx(100 * one.multiply_adds, rel=1e-6)
    assert many.seconds > 10 * one.seconds
    assert 0.1 * many.seconds < shared.seconds < 0.8 * many.seconds
    assert "times fewer than the plain loop's" in str(many)


def test_the_command_estimates(tmp_path: Path) -> None:
    options = ["--pairs", "16", "--interaction", "joint", "--estimate"]
    result = CliRunner().invoke(app, ["score", str(tmp_path / "run"), *options])
    assert result.exit_code == 0, result.output
    assert "at least 222 evaluations" in result.output
    assert not list(tmp_path.rglob("scores.json"))


@pytest.mark.parametrize("arguments", [{"kinds": ("tail",)}, {"devices": 0}])
def test_refusals(encoder: mope.DualEncoder, pairs: mope.Pairs, arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"kinds must be some of .* and devices at least 1; found"):
        mope.estimate_cost(encoder, pairs, **arguments)
