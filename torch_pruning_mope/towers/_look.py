"""Looks at a run of an encoder: which modules run, and which dimension of a bare parameter is the residual width."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from os.path import commonprefix
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from .._state import evaluation_mode, forwards, hooked, trainable, without_tables


def first_tensor(value: Any) -> Tensor:
    """The first tensor of nested arguments or results, by convention the hidden states."""
    stack = [value]
    while stack:
        value = stack.pop(0)
        if isinstance(value, Tensor):
            return value
        if isinstance(value, tuple | list):
            stack = [*value, *stack]
        elif isinstance(value, dict):
            stack = [*value.values(), *stack]
    raise TypeError("a layer must take and return tensors; found none.")


def called_modules(root: nn.Module, run: Callable[[], Any]) -> list[str]:
    """Names of the modules with parameters of their own that a run calls."""
    called: dict[str, None] = {}
    # Not inference mode, here and wherever a model is looked at: models keep tables that they make on their first run.
    named = [(name, module) for name, module in root.named_modules() if any(True for _ in module.parameters(False))]
    names = {module: name for name, module in named}

    def entered(module: nn.Module, *_: Any) -> None:
        called.setdefault(names[module])

    with torch.no_grad(), evaluation_mode(root), hooked(names, entered, before=True):
        run()
    return list(called)


def common_root(model: nn.Module, run: Callable[[], Any]) -> nn.Module:
    """The smallest module that holds all modules that a run calls."""
    return model.get_submodule(common_owner(name.split(".") for name in called_modules(model, run)))


def common_owner(paths: Iterable[list[str]]) -> str:
    """Name of the smallest module that all paths, lists of parts of names, lead through."""
    return ".".join(commonprefix(list(paths)))  # noqa: RUF071 (part by part, these are no strings)


def in_chain(root: nn.Module, modules: Sequence[nn.Module], run: Callable[[], Any]) -> bool:
    """True if what a layer puts out is known to reach the embedding through the next one alone; each runs once, in order."""
    outputs: dict[nn.Module, Any] = {}
    leaves: dict[Tensor, int] = {}
    reached: list[tuple[int, Any]] = []

    def stand_in(place: int, output: Any) -> Callable[..., Any]:
        def leaf(value: Any) -> Any:
            if not isinstance(value, Tensor) or not value.is_floating_point():
                return value
            made = value.detach().clone().requires_grad_()
            leaves[made] = place
            return made.clone()

        def forward(*args: Any, **kwargs: Any) -> Any:
            reached.append((place - 1, (args, kwargs)))
            return tree_map(leaf, output)

        return forward

    with torch.inference_mode(False), without_tables(root), evaluation_mode(root):
        with torch.no_grad(), hooked(modules, lambda module, _args, _kwargs, output: outputs.update({module: output})):
            run()
        try:
            with torch.enable_grad(), forwards((m, stand_in(place, outputs[m])) for place, m in enumerate(modules)):
                reached.append((len(modules) - 1, run()))
        except Exception:  # noqa: BLE001 (the model's own code, which need not run under autograd)
            return False
    return all(
        leaves.get(source, before) == before
        for before, values in reached
        for value in tree_leaves(values)
        if isinstance(value, Tensor)
        for source in _variables(value)
    )


def _variables(value: Tensor) -> Iterator[Tensor]:
    """The leaves of autograd's graph that a tensor is computed from."""
    stack: list[Any] = [value.grad_fn]
    seen = set(stack)
    while stack:
        function = stack.pop()
        if hasattr(function, "variable"):
            yield function.variable
        following = {each for each, _ in getattr(function, "next_functions", ())} - seen
        seen |= following
        stack += following


def vocabulary_of(root: nn.Module, run: Callable[[], Any], tokens: Tensor) -> int:
    """Rows of the table that some token ids, all the same, are looked up in; enough for these ids if there is no table."""
    found: list[int] = []

    def looked_up(module: nn.Module, args: tuple[Any, ...], _kwargs: Any) -> None:
        if args and isinstance(args[0], Tensor) and args[0].shape == tokens.shape and torch.equal(args[0], tokens):
            found.append(int(module.num_embeddings))  # type: ignore[arg-type]

    tables = [module for module in root.modules() if isinstance(module, nn.Embedding)]
    with torch.no_grad(), evaluation_mode(root), hooked(tables, looked_up, before=True):
        run()
    return max(found, default=int(tokens.max()) + 1)


def summed_dimensions(parameters: Mapping[str, nn.Parameter], run: Callable[[], Any]) -> dict[str, int]:
    """Of matrices, the dimension that a matrix product sums over; those that are in no product are left out."""
    holder = nn.Module()
    for place, parameter in enumerate(parameters.values()):
        holder.register_parameter(str(place), parameter)
    with trainable(holder):
        output = first_tensor(run())
    uses = _uses(output, set(parameters.values()))
    return {name: uses[parameter] for name, parameter in parameters.items() if parameter in uses}


_PRODUCTS = {"MmBackward0": 0, "BmmBackward0": 0, "AddmmBackward0": 1, "BaddbmmBackward0": 1}
"""Functions of autograd, each with the place of its first factor among its inputs."""
_TRANSPOSED = {"TBackward0", "TransposeBackward0", "PermuteBackward0", "NumpyTBackward0"}
_PASSED = {"ExpandBackward0", "ToCopyBackward0", "UnsafeViewBackward0", "ViewBackward0", "UnsqueezeBackward0"}


def _uses(output: Tensor, wanted: set[nn.Parameter]) -> dict[nn.Parameter, int]:
    """The dimension of each parameter that the first product it reaches sums over."""
    found: dict[nn.Parameter, int] = {}
    stack = [output.grad_fn]
    seen = set(stack)
    while stack:
        function: Any = stack.pop()
        for place, (following, _) in enumerate(getattr(function, "next_functions", ())):
            first = _PRODUCTS.get(type(function).__name__)
            if first is not None and place >= first:
                parameter, transposed = _source(following)
                if parameter in wanted:
                    found.setdefault(parameter, int((place == first) != transposed))
            if following is not None and following not in seen:
                seen.add(following)
                stack.append(following)
    return found


def _source(function: Any) -> tuple[Any, bool]:
    """The parameter that a factor is, or None, and whether it is transposed on the way."""
    transposed = False
    while function is not None and not hasattr(function, "variable"):
        name = type(function).__name__
        if name not in _TRANSPOSED | _PASSED:
            return None, False
        transposed ^= name in _TRANSPOSED
        function = function.next_functions[0][0]
    return getattr(function, "variable", None), transposed
