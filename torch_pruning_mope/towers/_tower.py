"""A tower: stem → blocks → readout, the view of an encoder that scoring works on."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor, nn

from ._sublayers import Stream, Sublayer


@dataclass(frozen=True)
class Block:
    """One Transformer layer.

    Attributes:
        module: The model's own module, as it stands in its list of layers.
        attention: Its attention sub-layer.
        feed_forward: Its MLP sub-layer.
    """

    module: nn.Module
    attention: Sublayer
    feed_forward: Sublayer

    @property
    def sublayers(self) -> tuple[Sublayer, Sublayer]:
        """The sub-layers in the order in which they run."""
        return (self.attention, self.feed_forward)


class Tower(ABC):
    """One encoder of a dual encoder. Subclass it, with these three methods, for a model of your own.

    A tower holds no weights: it points at the modules of the model, which stays the user's. ``readout(blocks(stem(inputs)))``
    must equal the model's own embedding of ``inputs``.
    """

    @abstractmethod
    def stem(self, inputs: Tensor) -> Stream:
        """What happens before the first block.

        Args:
            inputs: Images ``[N, C, R, R]`` or token ids ``[N, T]``.

        Returns:
            The residual stream that enters the first block.
        """

    @property
    @abstractmethod
    def blocks(self) -> Sequence[Block]:
        """The blocks in order, read off the model as it is now."""

    @abstractmethod
    def readout(self, stream: Stream) -> Float[Tensor, "N J"]:
        """What happens after the last block.

        Args:
            stream: The residual stream, either of all tokens or narrowed to the pooled one.

        Returns:
            The embeddings, not normalised.
        """

    @property
    def block_list(self) -> nn.ModuleList | None:
        """The model's list of blocks, so that whole blocks can be deleted; None where it has none."""
        return None

    @property
    def joint_parameters(self) -> Sequence[tuple[nn.Parameter, int]]:
        """Bare parameters that Torch-Pruning must be told about, each with the dimension along the residual width."""
        return ()

    def lengths(self, inputs: Tensor) -> Int[Tensor, "N"] | None:  # noqa: ARG002
        """How many leading tokens of each input can reach the embedding, or None if all can."""
        return None

    def check_inputs(self, inputs: Tensor) -> None:  # noqa: B027 (optional to override)
        """Raises where ``inputs`` cannot be what this tower expects."""

    def embed(self, inputs: Tensor) -> Float[Tensor, "N J"]:
        """The embeddings, by way of the tower's parts."""
        stream = self.stem(inputs)
        for block in self.blocks:
            for sublayer in block.sublayers:
                stream = sublayer(stream)
        return self.readout(stream)
