"""Physical removal of a unit on a copy: what every score must agree with."""

import copy

import torch
import torch_pruning as tp

from torch_pruning_mope import DualEncoder, Unit
from torch_pruning_mope.scoring import Ablation
from torch_pruning_mope.scoring._curves import isotonic_pools, pooled


def physically_without(encoder: DualEncoder, unit: Unit | Ablation) -> DualEncoder:
    """A copy of the encoder from which the unit is really gone."""
    smaller = DualEncoder(copy.deepcopy(encoder.model))
    if unit.kind == "block":
        smaller.remove_blocks(unit.tower, [unit.layer])
        return smaller
    block = smaller.towers[unit.tower].blocks[unit.layer]
    output = (block.attention if unit.kind == "head" else block.feed_forward).output
    if len(unit.channels) == output.in_features:
        # The last channel cannot be pruned away; the sub-layer without any is its bias.
        with torch.no_grad():
            output.weight.zero_()
        return smaller
    before = output.in_features
    graph = smaller.dependency_graph()
    graph.get_pruning_group(output, tp.prune_linear_in_channels, list(unit.channels)).prune()
    assert output.in_features == before - len(unit.channels)
    return smaller


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
