"""Types checked at run time at little cost: jaxtyping for functions whose arrays have axes, beartype alone for the others.

Import this before the package. It replaces the decorator that the import hook of jaxtyping's plugin writes before functions and
classes, which would bind the arguments of every call twice. A function is checked at its first call of each test: loops would
spend a third of their time on one and the same check.
"""

import dataclasses
import re
from collections.abc import Callable
from functools import wraps
from importlib.util import cache_from_source
from typing import Any

import jaxtyping

_jaxtyped = jaxtyping.jaxtyped
_seen: set[Any] = set()
new_test = _seen.clear
_ARRAY = re.compile(r"\b(Bool|Complex|Float|Inexact|Int|Integer|Num|Real|Shaped|UInt)\d*\[")


def _resolved(annotation: Any, names: dict[str, Any]) -> Any:
    """The type; any type will do where the name of one is imported for type checkers alone, or not defined yet."""
    try:
        return eval(annotation, names) if isinstance(annotation, str) else annotation
    except NameError:
        return Any


def _checked(function: Any, typechecker: Callable[[Any], Any]) -> Any:
    """Decorates at the first call: most functions of the package are not called by one process of the tests."""
    if not function.__annotations__:
        return function
    has_axes = _ARRAY.search(str(function.__annotations__))
    slow: Any = None

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal slow
        if function in _seen or jaxtyping.config.jaxtyping_disable:
            return function(*args, **kwargs)
        _seen.add(function)
        if slow is None:
            function.__annotations__ = {
                name: _resolved(annotation, function.__globals__)
                for name, annotation in function.__annotations__.items()
            }
            slow = _jaxtyped(function, typechecker=typechecker) if has_axes else typechecker(function)
        return slow(*args, **kwargs)

    return call


def _decorated(target: Any, typechecker: Callable[[Any], Any]) -> Any:
    if not isinstance(target, type):
        return _checked(target, typechecker)
    if dataclasses.is_dataclass(target) and "__init__" in vars(target):
        target.__init__ = _checked(target.__init__, typechecker)  # type: ignore[misc]
    return target


jaxtyping.jaxtyped = lambda *, typechecker: lambda target: _decorated(target, typechecker)


# While the hook runs a module, Python looks for the bytecode of all that this imports under a name of the hook's own, and so
# compiles torchvision, timm and open_clip in every process.
_cached = jaxtyping._import_hook._optimized_cache_from_source  # type: ignore[attr-defined]
jaxtyping._import_hook._optimized_cache_from_source = lambda hook, path, *args, **kwargs: (  # type: ignore[attr-defined]
    _cached(hook, path, *args, **kwargs) if "torch_pruning_mope" in path else cache_from_source(path, *args, **kwargs)
)
