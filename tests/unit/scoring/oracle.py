"""Physical removal of a unit on a copy: what every score must agree with."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from torch_pruning_mope import DualEncoder
from torch_pruning_mope.scoring import Ablation, Unit
from torch_pruning_mope.scoring._families import isotonic_pools, pooled


def physically_without(encoder: DualEncoder, *gone: Unit | Ablation) -> DualEncoder:
    """A copy of the encoder from which a block, or some heads and neurons of different sub-layers, are really gone."""
    smaller = copy.deepcopy(encoder)
    if gone[0].part == "block":
        (whole,) = gone
        smaller.remove_blocks(whole.tower, [whole.layer])
        return smaller
    graph: Any = None
    for unit in gone:
        block = smaller.towers[unit.tower].blocks[unit.layer]
        units = block.attention if unit.part == "head" else block.feed_forward
        assert units is not None
        output: Any = units.output
        before = _inputs(output)
        if len(unit.channels) == before:
            # The last channel cannot be pruned away; the sub-layer without any is its bias.
            with torch.no_grad():
                output.weight.zero_()
            continue
        graph = smaller.dependency_graph(checked=False) if graph is None else graph
        pruner = graph.get_pruner_of_module(output)
        graph.get_pruning_group(output, pruner.prune_in_channels, list(unit.channels)).prune()
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


Inputs = Callable[[DualEncoder, nn.Module], torch.Tensor]
"""Rows of a layer's input that can reach the embedding, in an encoder."""


def refitted_without(encoder: DualEncoder, gone: Ablation, inputs_of: Inputs) -> DualEncoder:
    """A copy without the channels, its output layer refitted by ``lstsq`` on the stacked system."""
    smaller = physically_without(encoder, gone)
    if gone.part == "block":
        return smaller
    before, after = (_output(model, gone) for model in (encoder, smaller))
    if isinstance(before, nn.Conv2d) and before.groups != 1:
        return smaller
    dense, hidden, weight = inputs_of(encoder, before), inputs_of(smaller, after), before.weight.flatten(1).mT
    kernel = before.weight[0, 0].numel()
    kept = [row for row in range(dense.shape[1]) if row // kernel not in gone.channels]
    hidden = hidden if kept else hidden[:, :0]
    physical = bool(kept) and not torch.allclose(hidden, dense[:, kept])
    ridge = 1e-4 * float((hidden if physical else dense).square().sum(0).mean())
    ones = torch.ones(len(hidden), before.bias is not None, dtype=hidden.dtype)
    bias = [] if before.bias is None else [before.bias[None]]
    prior, target = torch.cat([weight[kept], *bias]), dense @ weight + sum(bias)
    system = torch.cat([torch.cat([hidden, ones], 1), ridge**0.5 * torch.eye(len(prior), dtype=hidden.dtype)])
    found = torch.linalg.lstsq(system, torch.cat([target, ridge**0.5 * prior]).detach(), driver="gelsd").solution
    with torch.no_grad():
        if before.bias is not None:
            after.bias.copy_(found[-1])
        if kept:
            after.weight.copy_(found[: len(kept)].mT.reshape(after.weight.shape))
    return smaller


def _output(encoder: DualEncoder, gone: Ablation) -> Any:
    block = encoder.towers[gone.tower].blocks[gone.layer]
    units = block.attention if gone.part == "head" else block.feed_forward
    assert units is not None
    return units.output
