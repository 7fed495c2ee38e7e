"""Handlers keyed by module type."""

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from torch import nn

HandlerT = TypeVar("HandlerT")
TypeKey = type[nn.Module] | str
"""A module type, or its full name (``timm.layers.attention.Attention``), which spares importing it."""


def full_name(kind: TypeKey) -> str:
    """Module and qualified name of a type."""
    return kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"


def is_of(module: object, *names: str) -> bool:
    """True if a module is of exactly one of some types, by their full names, which spares importing their library."""
    return full_name(type(module)) in names  # type: ignore[arg-type]


class Registry(Generic[HandlerT]):
    """Handlers of exact module types; a subclass needs one of its own."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._handlers: dict[str, HandlerT] = {}

    def register(self, *kinds: TypeKey) -> Callable[[HandlerT], HandlerT]:
        """A decorator that registers a handler."""
        names = [full_name(kind) for kind in kinds]
        taken = [name.rpartition(".")[2] for name in names if name in self._handlers]
        if taken:
            raise ValueError(f"kinds must be types without {self._what}; registered already: {taken}.")

        def register(handler: HandlerT) -> HandlerT:
            self._handlers.update(dict.fromkeys(names, handler))
            return handler

        return register

    def get(self, kind: type[nn.Module]) -> HandlerT | None:
        """The handler of a type, if it has one."""
        return self._handlers.get(full_name(kind))

    def __iter__(self) -> Iterator[str]:
        return iter(self._handlers)
