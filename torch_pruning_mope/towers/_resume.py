"""Running an encoder by its own code from one of its layers on, or up to one.

The layers before are not run: the last of them gives out what was recorded, the others anything of the right shape. What
stands between the layers, such as the stem or a change of resolution, is run again.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map

from .._state import forwards, hooked


class Reached(Exception):  # noqa: N818 (no error, the way out)
    """Ends a run once it has reached what was looked for; nothing after it matters."""


def resume(
    encode: Callable[[Tensor], Any],
    inputs: Tensor,
    modules: Sequence[nn.Module],
    before: Sequence[Any] = (),
    stop: int | None = None,
) -> Any:
    """Runs an encoder, some of whose first layers put out what was recorded."""
    given = [(module, _giving(out)) for module, out in zip(modules, before, strict=False)]
    with forwards(given), hooked([] if stop is None else [modules[stop]], _reached):
        try:
            return encode(inputs)
        except Reached as reached:
            return reached.args[0]


def shape_alone(value: Any) -> Any:
    """Tensors of the same shapes that take no memory."""
    return tree_map(lambda leaf: leaf.new_zeros(()).expand(leaf.shape) if isinstance(leaf, Tensor) else leaf, value)


def returning(value: Any) -> Callable[..., Any]:
    """A forward that puts out a value, whatever it is given."""
    return lambda *_, **__: value


def _giving(value: Any) -> Callable[..., Any]:
    """The same with copies of what has memory of its own: what follows may change it in place."""
    return lambda *_, **__: tree_map(
        lambda leaf: leaf.clone() if isinstance(leaf, Tensor) and 0 not in leaf.stride() else leaf, value
    )


def _reached(_module: nn.Module, _args: Any, _kwargs: Any, output: Any) -> None:
    raise Reached(output)
