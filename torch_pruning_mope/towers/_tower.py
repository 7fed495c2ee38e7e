"""Towers: the views of an encoder that scoring and pruning work on."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn

from ._prunable import Prunable
from ._sublayers import Stream, Sublayer


@dataclass(frozen=True)
class Block:
    """One layer.

    Attributes:
        module: The model's own module.
        attention: Its heads, or None if it has none.
        feed_forward: Its neurons, or None if it has none.
        siblings: The model's list of layers that the module stands in, so that it can be deleted; None where it cannot.
    """

    module: nn.Module
    attention: Prunable | None
    feed_forward: Prunable | None
    siblings: nn.ModuleList | nn.Sequential | None = None

    @property
    def prunables(self) -> tuple[Prunable, ...]:
        """Heads and neurons, as far as there are any."""
        return tuple(units for units in (self.attention, self.feed_forward) if units is not None)

    @property
    def is_in_parts(self) -> bool:
        """True if it knows how its heads and neurons run."""
        return all(isinstance(units, Sublayer) for units in self.prunables)

    @property
    def sublayers(self) -> tuple[Sublayer, ...]:
        """The sub-layers in the order in which they run, of a tower that is made of such."""
        sublayers = tuple(units for units in self.prunables if isinstance(units, Sublayer))
        if not self.is_in_parts:
            raise TypeError("a Tower's blocks must be made of Sublayers; found a block that is not.")
        return sublayers


class BlockTower(ABC):
    """The base of all towers: an encoder as a row of blocks."""

    @property
    @abstractmethod
    def blocks(self) -> Sequence[Block]:
        """The blocks in order, read off the model as it is now."""

    @property
    def streams(self) -> Sequence[nn.Module]:
        """For each residual width of the encoder, a layer whose output channels it is."""
        return [self.blocks[0].prunables[-1].output]

    @property
    def width(self) -> int:
        """The residual width, summed over the streams where there are several."""
        outputs: list[Any] = list(self.streams)
        return sum(int(output.weight.shape[0]) for output in outputs)

    @property
    def joint_parameters(self) -> Sequence[tuple[nn.Parameter, int]]:
        """Bare parameters that Torch-Pruning must be told about, each with the dimension along the residual width."""
        return ()

    def lengths(self, inputs: Tensor) -> Int[Tensor, "N"] | None:  # noqa: ARG002
        """Number of leading tokens of each input that can reach the embedding; None if all can."""
        return None

    def delete(self, indices: Sequence[int]) -> None:
        """Mutates the model: deletes blocks that stand in a list of layers."""
        blocks = list(self.blocks)
        for index in indices:
            remove_element(blocks[index].siblings, blocks[index].module)

    def check_inputs(self, inputs: Tensor) -> None:  # noqa: B027 (optional to override)
        """Raises where ``inputs`` cannot be what this tower expects."""


class Tower(BlockTower):
    """One encoder of a dual encoder, taken apart. Subclass it, with these three methods, for a model of your own.

    A tower holds no weights: it points at the modules of the model, which stays the user's. ``readout(blocks(stem(inputs)))``
    must equal the model's own embedding of ``inputs``. Scoring is fastest on such towers; an :class:`OpaqueTower` asks for
    less.
    """

    keeps_stream = True
    """True if the hidden states of a stream are the residual stream after every sub-layer, not just after every layer."""

    @abstractmethod
    def stem(self, inputs: Tensor) -> Stream:
        """Runs what comes before the first block.

        Args:
            inputs: Images ``[N, C, R, R]`` or token ids ``[N, T]``.

        Returns:
            The residual stream that enters the first block.
        """

    @abstractmethod
    def readout(self, stream: Stream) -> Float[Tensor, "N J"]:
        """Runs what comes after the last block.

        Args:
            stream: The residual stream, either of all tokens or narrowed to the pooled one.

        Returns:
            The embeddings, not normalised.
        """

    def embed(self, inputs: Tensor) -> Float[Tensor, "N J"]:
        """The embeddings, by way of the tower's parts."""
        stream = self.stem(inputs)
        for block in (block for block in self.blocks if block.is_in_parts):
            for sublayer in block.sublayers:
                stream = sublayer(stream)
        return self.readout(stream)


def remove_element(siblings: Any, module: nn.Module) -> None:
    """Mutates a list of layers: deletes one, if it is there."""
    for place, element in enumerate(siblings):
        if element is module:
            del siblings[place]
            return
