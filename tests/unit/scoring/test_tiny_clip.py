"""On two layers of each tower of the CLIP that ships: all heads and neuron groups, masked, by the engine, and removed."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import torch_pruning_mope as mope
from tests.asserts import assert_close
from tests.unit.scoring.oracle import embeddings, physically_without
from torch_pruning_mope._state import kept_modules
from torch_pruning_mope.scoring import Ablator, single_ablation


@contextmanager
def cut(copied: mope.DualEncoder, graph: Any, unit: mope.scoring.Unit) -> Iterator[mope.DualEncoder]:
    """The copy without the unit, removed by Torch-Pruning; a graph of its own for each would take most of the time."""
    if unit.kind == "block":
        yield physically_without(copied, unit)
        return
    block = copied.towers[unit.tower].blocks[unit.layer]
    output: Any = (block.attention if unit.kind == "head" else block.feed_forward).output  # type: ignore[union-attr]
    before = output.in_features
    group = graph.get_pruning_group(output, graph.get_pruner_of_module(output).prune_in_channels, list(unit.channels))
    with kept_modules(copied.model):
        group.prune(record_history=False)
        assert output.in_features == output.weight.shape[1] == before - len(unit.channels)
        yield copied
    assert output.in_features == output.weight.shape[1] == before


@pytest.mark.usefixtures("_shallow")
@pytest.mark.parametrize("tower", ["image", "text"])
def test_every_unit_of_the_tiny_clip(tower: Any) -> None:
    encoder = mope.DualEncoder(mope.load_tiny_clip())
    pairs = mope.emoji_pairs("calibration", 8)
    options: dict[str, Any] = {"interaction": "single", "towers": [tower], "progress": False}
    kinds = ("head", "neurons", "block")
    recall, loss = (
        mope.score(encoder, pairs, metric=m, kinds=kinds, **options) for m in ("recall_mean", "contrastive_loss")
    )
    heads = 6 if tower == "image" else 4
    assert len(recall.scores) == 2 * (heads + 16 + 1)
    inputs = pairs.images if tower == "image" else pairs.tokens
    dense = {name: embeddings(encoder, name, x) for name, x in (("image", pairs.images), ("text", pairs.tokens))}
    copied = mope.DualEncoder(copy.deepcopy(encoder.model))
    graph = copied.dependency_graph()
    ablator = Ablator(encoder)
    assert not ablator.physical
    measures = {
        "recall": mope.metrics.Recall(),
        "loss": mope.metrics.ContrastiveLoss(torch.as_tensor(encoder.logit_scale).item()),
    }
    for by_recall, by_loss in zip(recall.scores, loss.scores, strict=True):
        unit = by_recall.unit
        assert unit == by_loss.unit
        with cut(copied, graph, unit) as smaller:
            physical = embeddings(smaller, tower, inputs)
        with ablator.without(tower, [single_ablation(unit)]) as masked:
            assert masked is encoder
            plain = embeddings(masked, tower, inputs)
        assert_close(F.normalize(plain, dim=-1), F.normalize(physical, dim=-1), 1e-5)
        for ablated in (plain, physical):
            both = dense | {tower: ablated}
            lost = {
                name: measure(dense["image"], dense["text"]) - measure(both["image"], both["text"])
                for name, measure in measures.items()
            }
            assert by_recall.value == pytest.approx(lost["recall"], abs=1e-12), str(unit)
            assert by_loss.value == pytest.approx(lost["loss"], abs=1e-5), str(unit)
