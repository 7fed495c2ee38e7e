"""Which towers a model has, by the type of the model."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor, nn

from ..errors import UnsupportedModelError
from ._tower import Tower


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
    """

    image: Tower
    text: Tower
    encode_image: Callable[[Tensor], Tensor]
    encode_text: Callable[[Tensor], Tensor]
    image_shape: tuple[int, int, int]
    context_length: int


_Factory = Callable[[Any], Towers]
_FactoryT = TypeVar("_FactoryT", bound=_Factory)
_FACTORIES: dict[type[nn.Module], _Factory] = {}


def register_towers(*kinds: type[nn.Module]) -> Callable[[_FactoryT], _FactoryT]:
    """Registers a factory of :class:`Towers` for models of exactly these types.

    Args:
        *kinds: The model types.

    Returns:
        The decorator.

    Raises:
        ValueError: If one of the types is registered already.
    """
    taken = [kind.__qualname__ for kind in kinds if kind in _FACTORIES]
    if taken:
        raise ValueError(f"kinds must be types without a factory; registered already: {taken}.")

    def register(factory: _FactoryT) -> _FactoryT:
        _FACTORIES.update(dict.fromkeys(kinds, factory))
        return factory

    return register


def is_known(model: nn.Module) -> bool:
    """Whether the model's type has a factory."""
    return type(model) in _FACTORIES


def towers_of(model: nn.Module) -> Towers:
    """The towers of a model whose attention has been swapped.

    Args:
        model: The dual encoder.

    Returns:
        Its towers.

    Raises:
        UnsupportedModelError: If the type of the model, or of one of its encoders, is not registered.
    """
    if not is_known(model):
        known = sorted(f"{kind.__module__.split('.')[0]}.{kind.__qualname__}" for kind in _FACTORIES)
        raise UnsupportedModelError(
            f"model must be of a registered type ({', '.join(known)}); found {type(model).__qualname__}. For a model of "
            "your own, write a torch_pruning_mope.Tower (stem, blocks, readout) for each encoder and register a factory "
            "with torch_pruning_mope.register_towers."
        )
    return _FACTORIES[type(model)](model)
