"""The exact ablation engine: what the plain loop computes, without recomputing what an ablation cannot change.

An ablation in one sub-layer leaves everything before it as it was, so the engine walks through a tower once, sub-layer by
sub-layer, and runs only what follows for each ablation. Inside the sub-layer the ablated channels' contribution is subtracted
from the recorded output. Captions are cut where nothing can reach the pooled token any more, and once no later sub-layer
mixes tokens only the pooled token is computed.

Axes as in ``towers``; ``K`` ablations run as one batch of ``K * N`` sequences.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .._state import evaluation_mode
from ..encoder import DualEncoder, TowerName
from ..towers import Stream, Sublayer, Tower
from ._units import Ablation


@dataclass
class _Chunk:
    """Some of the inputs, and their residual stream at the depth that the walk has reached."""

    rows: Int[Tensor, "n"]
    stream: Stream


@torch.inference_mode()
def dense_embeddings(encoder: DualEncoder, tower: TowerName, inputs: Tensor, batch_size: int) -> Float[Tensor, "N J"]:
    """The unablated embeddings, by the same path as the engine's.

    Args:
        encoder: The dual encoder; left as it is.
        tower: Which tower.
        inputs: Its inputs.
        batch_size: Sequences run at once.

    Returns:
        The embeddings, not normalised.
    """
    with evaluation_mode(encoder.model):
        view = encoder.towers[tower]
        chunks = _chunks(view, inputs, batch_size, encoder.device)
        sublayers = _sublayers(view)
        return _gather(chunks, [_run(view, sublayers, 0, chunk.stream) for chunk in chunks], len(inputs))


def prefix_ablations(
    encoder: DualEncoder, tower: TowerName, inputs: Tensor, ablations: Sequence[Ablation], batch_size: int
) -> Iterator[tuple[list[int], Float[Tensor, "K N J"]]]:
    """Embeddings under each ablation.

    Args:
        encoder: The dual encoder; left as it is.
        tower: Which tower.
        inputs: Its inputs.
        ablations: Ablations of that tower.
        batch_size: Sequences run at once.

    Yields:
        Positions in ``ablations``, and their embeddings, not normalised. Every position comes once.
    """
    view = encoder.towers[tower]
    sublayers = _sublayers(view)
    per_block = len(view.blocks[0].sublayers)
    offsets = {"head": 0, "neurons": 1, "block": 0}
    with torch.inference_mode(), evaluation_mode(encoder.model):
        chunks = _chunks(view, inputs, batch_size, encoder.device)
    for depth in range(len(sublayers)):
        here = [i for i, a in enumerate(ablations) if a.layer * per_block + offsets[a.kind] == depth]
        here.sort(key=lambda i: ablations[i].kind != "block")  # whole blocks first, as _ablate returns them
        # Entered anew at every depth: a generator that is abandoned must not leave the model in eval mode.
        with torch.inference_mode(), evaluation_mode(encoder.model):
            parts = [
                _ablate(view, sublayers, depth, chunk, [ablations[i] for i in here], batch_size, per_block)
                for chunk in chunks
            ]
            result = _gather(chunks, parts, len(inputs)) if here else None
        if result is not None:
            yield here, result


def _sublayers(tower: Tower) -> list[Sublayer]:
    return [sublayer for block in tower.blocks for sublayer in block.sublayers]


def _chunks(tower: Tower, inputs: Tensor, batch_size: int, device: torch.device) -> list[_Chunk]:
    """Inputs of similar length together, each cut at its longest."""
    lengths = tower.lengths(inputs)
    order = torch.arange(len(inputs)) if lengths is None else lengths.cpu().argsort(stable=True)
    chunks = []
    for rows in order.split(batch_size):
        part = inputs[rows.to(inputs.device)]
        if lengths is not None:
            part = part[:, : int(lengths[rows.to(lengths.device)].max())]
        chunks.append(_Chunk(rows, tower.stem(part.to(device))))
    return chunks


def _gather(chunks: Sequence[_Chunk], parts: Sequence[Tensor], count: int) -> Tensor:
    """Chunks' results ``[..., n, J]`` put back into the order of the inputs."""
    gathered = parts[0].new_empty(*parts[0].shape[:-2], count, parts[0].shape[-1])
    for chunk, part in zip(chunks, parts, strict=True):
        gathered[..., chunk.rows.to(part.device), :] = part
    return gathered


def _last_mixing(sublayers: Sequence[Sublayer]) -> int:
    return max((depth for depth, sublayer in enumerate(sublayers) if sublayer.mixes_tokens), default=-1)


def _advance(sublayers: Sequence[Sublayer], depth: int, stream: Stream) -> tuple[Stream, Tensor, Tensor]:
    """The stream that a sub-layer adds to (narrowed where nothing later mixes tokens), its hidden channels, its output."""
    pooled_only = stream.pooled is not None and depth >= _last_mixing(sublayers)
    hidden = sublayers[depth].hidden(stream, pooled_only=pooled_only)
    return (stream.narrow() if pooled_only else stream), hidden, sublayers[depth].output(hidden)


def _run(tower: Tower, sublayers: Sequence[Sublayer], depth: int, stream: Stream) -> Float[Tensor, "N J"]:
    """From the stream before ``depth`` to the embeddings."""
    for later in range(depth, len(sublayers)):
        stream, _, out = _advance(sublayers, later, stream)
        stream = stream.with_x(sublayers[later].finish(stream.x, out))
    return tower.readout(stream)


def _ablate(
    tower: Tower,
    sublayers: Sequence[Sublayer],
    depth: int,
    chunk: _Chunk,
    ablations: Sequence[Ablation],
    batch_size: int,
    per_block: int,
) -> Tensor:
    """Mutates ``chunk``: advances it by one sub-layer; returns its embeddings under each ablation, whole blocks first."""
    before, sublayer = chunk.stream, sublayers[depth]
    base, hidden, out = _advance(sublayers, depth, before)
    blocks = sum(ablation.kind == "block" for ablation in ablations)
    results = [_run(tower, sublayers, depth + per_block, before)] * blocks
    together = max(1, batch_size // len(chunk.rows))
    for start in range(blocks, len(ablations), together):
        batch = ablations[start : start + together]
        outs = torch.cat([_without(sublayer, hidden, out, ablation.channels) for ablation in batch])
        stream = base.repeat(len(batch))
        stream = stream.with_x(sublayer.finish(stream.x, outs))
        results += _run(tower, sublayers, depth + 1, stream).unflatten(0, (len(batch), -1)).unbind(0)
    chunk.stream = base.with_x(sublayer.finish(base.x, out))
    return torch.stack(results) if results else out.new_empty(0)


def _without(sublayer: Sublayer, hidden: Tensor, out: Tensor, channels: Sequence[int]) -> Float[Tensor, "n T D"]:
    """The sub-layer's output without some channels, by whichever of the two sides is smaller."""
    weight, bias = sublayer.output.weight, sublayer.output.bias
    gone = torch.tensor(channels, device=hidden.device)
    if 2 * len(channels) <= weight.shape[1]:
        return out - hidden[..., gone] @ weight[:, gone].mT
    kept = torch.ones(weight.shape[1], dtype=torch.bool, device=hidden.device)
    kept[gone] = False
    rest = hidden[..., kept] @ weight[:, kept].mT
    return rest if bias is None else rest + bias
