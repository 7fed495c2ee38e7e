"""Physical removal of a unit on a copy: what every score must agree with."""

import copy
from typing import Any

import torch

from torch_pruning_mope import DualEncoder, Unit
from torch_pruning_mope.scoring import Ablation
from torch_pruning_mope.scoring._curves import isotonic_pools, pooled


def physically_without(encoder: DualEncoder, unit: Unit | Ablation) -> DualEncoder:
    """A copy of the encoder from which the unit is really gone."""
    smaller = DualEncoder(copy.deepcopy(encoder.model))
    part = unit.part
    if part == "block":
        smaller.remove_blocks(unit.tower, [unit.layer])
        return smaller
    block = smaller.towers[unit.tower].blocks[unit.layer]
    units = block.attention if part == "head" else block.feed_forward
    assert units is not None
    output: Any = units.output
    if len(unit.channels) == _inputs(output):
        # The last channel cannot be pruned away; the sub-layer without any is its bias.
        with torch.no_grad():
            output.weight.zero_()
        return smaller
    before = _inputs(output)
    graph = smaller.dependency_graph(checked=False)
    graph.get_pruning_group(output, graph.get_pruner_of_module(output).prune_in_channels, list(unit.channels)).prune()
    assert _inputs(output) == before - len(unit.channels)
    return smaller


def _inputs(output: Any) -> int:
    return int(output.weight.shape[1])


def nested_scores(losses: torch.Tensor) -> torch.Tensor:
    """Isotonic increments of a curve of losses that begins at none."""
    increments = losses.diff(prepend=losses.new_zeros(1))
    return pooled(increments, isotonic_pools(increments))


def embeddings(encoder: DualEncoder, tower: str, inputs: torch.Tensor) -> torch.Tensor:
    """The model's own embeddings, all at once."""
    encode = encoder.model.encode_image if tower == "image" else encoder.model.encode_text
    with torch.no_grad():
        out = encode(inputs)
    assert isinstance(out, torch.Tensor)
    return out
