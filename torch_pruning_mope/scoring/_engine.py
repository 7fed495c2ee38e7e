"""The exact ablation engine: what the plain loop computes, without recomputing what an ablation cannot change.

An ablation in one sub-layer leaves everything before it as it was, so the engine walks through a tower once, sub-layer by
sub-layer, and runs only what follows for each ablation. Inside the sub-layer the ablated channels' contribution is subtracted
from the recorded output. Captions are cut where nothing can reach the pooled token any more, and once no later sub-layer
mixes tokens only the pooled token is computed.

Axes as in ``towers``; ``K`` ablations run as one batch of ``K * N`` sequences.
"""

from collections.abc import Collection, Iterator, Sequence
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


class _Walk:
    """A tower as a chain of sub-layers, some of whose units have been removed already.

    Args:
        tower: The tower.
        removed: What contributes nothing from the start.
    """

    def __init__(self, tower: Tower, removed: Collection[Ablation]) -> None:
        self.tower = tower
        self.sublayers: list[Sublayer] = [sublayer for block in tower.blocks for sublayer in block.sublayers]
        self.per_block = len(tower.blocks[0].sublayers)
        self.last_mixing = max((d for d, sublayer in enumerate(self.sublayers) if sublayer.mixes_tokens), default=-1)
        self._keep: dict[int, Tensor] = {}
        self._skipped: set[int] = set()
        for ablation in removed:
            depth = self.depth(ablation)
            if ablation.kind == "block":
                self._skipped.update(range(depth, depth + self.per_block))
                continue
            weight = self.sublayers[depth].output.weight
            keep = self._keep.setdefault(depth, torch.ones_like(weight[0]))
            keep[list(ablation.channels)] = 0

    def depth(self, ablation: Ablation) -> int:
        """Position of the (first) sub-layer that an ablation is in."""
        return ablation.layer * self.per_block + (ablation.kind == "neurons")

    def advance(self, depth: int, stream: Stream) -> tuple[Stream, Tensor, Tensor]:
        """The stream that a sub-layer adds to (narrowed where nothing later mixes tokens), its channels, its output."""
        pooled_only = stream.pooled is not None and depth >= self.last_mixing
        hidden = self.sublayers[depth].hidden(stream, pooled_only=pooled_only)
        if depth in self._keep:
            hidden = hidden * self._keep[depth]
        return (stream.narrow() if pooled_only else stream), hidden, self.sublayers[depth].output(hidden)

    def step(self, depth: int, stream: Stream) -> Stream:
        """The stream after a sub-layer."""
        if depth in self._skipped:
            return stream
        base, _, out = self.advance(depth, stream)
        return base.with_x(self.sublayers[depth].finish(base.x, out))

    def run(self, depth: int, stream: Stream) -> Float[Tensor, "N J"]:
        """From the stream before ``depth`` to the embeddings."""
        for later in range(depth, len(self.sublayers)):
            stream = self.step(later, stream)
        return self.tower.readout(stream)

    def ablate(self, depth: int, stream: Stream, ablations: Sequence[Ablation], batch_size: int) -> Tensor:
        """Embeddings ``[K, N, J]`` under each ablation at ``depth``, whole blocks first, from the stream before it."""
        blocks = sum(ablation.kind == "block" for ablation in ablations)
        results = [self.run(depth + self.per_block, stream)] * blocks
        if blocks == len(ablations):
            return torch.stack(results)
        base, hidden, out = self.advance(depth, stream)
        together = max(1, batch_size // len(stream.x))
        for start in range(blocks, len(ablations), together):
            batch = ablations[start : start + together]
            outs = torch.cat([_without(self.sublayers[depth], hidden, out, a.channels) for a in batch])
            many = base.repeat(len(batch))
            many = many.with_x(self.sublayers[depth].finish(many.x, outs))
            results += self.run(depth + 1, many).unflatten(0, (len(batch), -1)).unbind(0)
        return torch.stack(results)


@torch.inference_mode()
def dense_embeddings(
    encoder: DualEncoder, tower: TowerName, inputs: Tensor, batch_size: int, removed: Collection[Ablation] = ()
) -> Float[Tensor, "N J"]:
    """The embeddings without further ablation, by the same path as the engine's.

    Args:
        encoder: The dual encoder; left as it is.
        tower: Which tower.
        inputs: Its inputs.
        batch_size: Sequences run at once.
        removed: Ablations of that tower that hold throughout.

    Returns:
        The embeddings, not normalised.
    """
    with evaluation_mode(encoder.model):
        walk = _Walk(encoder.towers[tower], removed)
        chunks = _chunks(walk.tower, inputs, batch_size, encoder.device)
        return _gather(chunks, [walk.run(0, chunk.stream) for chunk in chunks], len(inputs))


def prefix_ablations(
    encoder: DualEncoder,
    tower: TowerName,
    inputs: Tensor,
    ablations: Sequence[Ablation],
    batch_size: int,
    removed: Collection[Ablation] = (),
) -> Iterator[tuple[list[int], Float[Tensor, "K N J"]]]:
    """Embeddings under each ablation.

    Args:
        encoder: The dual encoder; left as it is.
        tower: Which tower.
        inputs: Its inputs.
        ablations: Ablations of that tower.
        batch_size: Sequences run at once.
        removed: Ablations of that tower that hold throughout, besides.

    Yields:
        Positions in ``ablations``, and their embeddings, not normalised. Every position comes once.
    """
    walk = _Walk(encoder.towers[tower], removed)
    depths = [walk.depth(ablation) for ablation in ablations]
    with torch.inference_mode(), evaluation_mode(encoder.model):
        chunks = _chunks(walk.tower, inputs, batch_size, encoder.device)
    for depth in range(max(depths, default=-1) + 1):
        here = [i for i, own in enumerate(depths) if own == depth]
        here.sort(key=lambda i: ablations[i].kind != "block")
        result = None
        # Entered anew at every depth: a generator that is abandoned must not leave the model in eval mode.
        with torch.inference_mode(), evaluation_mode(encoder.model):
            if here:
                chosen = [ablations[i] for i in here]
                parts = [walk.ablate(depth, chunk.stream, chosen, batch_size) for chunk in chunks]
                result = _gather(chunks, parts, len(inputs))
            for chunk in chunks:
                chunk.stream = walk.step(depth, chunk.stream)
        if result is not None:
            yield here, result


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
