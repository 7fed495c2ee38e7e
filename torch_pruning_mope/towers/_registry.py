"""Finds a model's towers by its type."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .._registry import Registry, TypeKey
from ._tower import BlockTower

HOW_TO = """register a factory of towers:

    @mope.register_towers(MyModel)
    def my_towers(model):
        return mope.towers.Towers(image=MyTower(model.vision), text=..., encode_image=model.vision, ...)

where a tower is a subclass of mope.towers.Tower with three methods,

    def stem(self, inputs): ...      # inputs -> mope.towers.Stream, what enters the first block
    def blocks(self): ...            # a property: mope.towers.Block for each layer
    def readout(self, stream): ...   # mope.towers.Stream -> embeddings

or mope.towers.OpaqueTower(model.vision, encode_image, example), which finds layers of known types. examples/README.md has a
complete example."""


@dataclass(frozen=True)
class Towers:
    """The two towers of a dual encoder and how to run the whole of it.

    Attributes:
        image: The image tower.
        text: The text tower.
        encode_image: The model's own image encoder, not normalising.
        encode_text: The model's own text encoder, not normalising.
        image_shape: ``(C, R, R)`` of one image.
        context_length: Tokens of one caption.
        decoder: What comes after both towers and has no part in the embeddings (CoCa's), or None.
        decode: Images and tokens to whatever the decoder makes of them, or None.
    """

    image: BlockTower
    text: BlockTower
    encode_image: Callable[[Tensor], Tensor]
    encode_text: Callable[[Tensor], Tensor]
    image_shape: tuple[int, int, int]
    context_length: int
    decoder: BlockTower | None = None
    decode: Callable[[Tensor, Tensor], Tensor] | None = None


FACTORIES: Registry[Callable[[Any], Towers]] = Registry("a factory of their towers")


def register_towers(*kinds: TypeKey) -> Callable[..., Any]:
    """Registers a factory of :class:`Towers` for models of exactly these types.

    Args:
        *kinds: The model types, or their full names, which spares importing them.

    Returns:
        The decorator.

    Raises:
        ValueError: If one of the types is registered already.
    """
    return FACTORIES.register(*kinds)
