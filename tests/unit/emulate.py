"""A pruned model computed on the whole one: every cut channel zeroed where it is made, and kept out of every norm.

The oracle of surgery for any architecture. It takes from the pruner which channels it cut of which layer, and nothing of how it
cut: channels that producers and consumers do not agree on, a norm that lost the wrong weights, or a layer that was forgotten
make it differ.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
import torch_pruning as tp
from torch import Tensor, nn

Cut = dict[tuple[str, bool], set[int]]
"""For each module (or bare parameter) by name and whether it is about outputs: the channels that went."""


def cuts_of(model: nn.Module, graph: tp.DependencyGraph, groups: Sequence[Any]) -> Cut:
    """Channels that some groups cut, by name; before they do."""
    names: dict[Any, str] = {module: name for name, module in model.named_modules()}
    names |= {parameter: name for name, parameter in model.named_parameters()}
    cut: Cut = {}
    for group in groups:
        for dep, idxs in group:
            if dep.target.module in names:
                makes = graph.is_out_channel_pruning_fn(dep.handler)
                both = isinstance(dep.target.module, nn.Parameter)
                cut.setdefault((names[dep.target.module], makes or both), set()).update(idxs)
    return cut


def _along(x: Tensor, dim: int, gone: set[int]) -> Tensor:
    keep = torch.ones(x.shape[dim], dtype=x.dtype)
    keep[sorted(gone)] = 0
    return x * keep.view([-1 if d == dim % x.ndim else 1 for d in range(x.ndim)])


def _channel_dim(module: nn.Module, x: Tensor) -> int:
    maps = isinstance(module, nn.Conv2d | nn.BatchNorm2d) or type(module).__name__ in {"LayerNorm2d", "LayerNormAct2d"}
    return 1 if maps else -1


def _partial_norm(module: Any, gone: set[int]) -> Any:
    kept = [channel for channel in range(module.normalized_shape[-1]) if channel not in gone]

    def forward(x: Tensor, *_: Any, **__: Any) -> Tensor:
        dim = _channel_dim(module, x)
        moved = x.movedim(dim, -1)
        y = F.layer_norm(
            moved[..., kept],
            (len(kept),),
            None if module.weight is None else module.weight[kept],
            None if module.bias is None else module.bias[kept],
            module.eps,
        )
        if hasattr(module, "act"):
            y = module.act(module.drop(y))
        return torch.zeros_like(moved).index_copy(-1, torch.tensor(kept), y).movedim(-1, dim)

    return forward


def _partial_rms(module: Any, gone: set[int]) -> Any:
    def forward(x: Tensor) -> Tensor:
        size = x.shape[-1]
        mean = _along(x, -1, gone).square().sum(-1, keepdim=True) / (size - len(gone))
        return _along(module.weight * x * torch.rsqrt(mean + module.variance_epsilon), -1, gone)

    return forward


@contextmanager
def emulated(model: nn.Module, cut: Cut, dims: dict[str, int]) -> Iterator[None]:
    """``model``, a whole twin of the pruned one, without the channels of ``cut``; itself again afterwards.

    Args:
        model: The twin.
        cut: What is gone.
        dims: Dimension of the channels of bare parameters, by name.
    """
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters())
    with ExitStack() as stack:
        for (name, makes), gone in cut.items():
            if name in parameters:
                owner, _, leaf = name.rpartition(".")
                parameter, holder = parameters[name], modules[owner]
                if type(holder).__name__ in {"MT5LayerNorm", "T5LayerNorm"}:
                    holder.forward = _partial_rms(holder, gone)
                    stack.callback(holder.__dict__.pop, "forward")
                    continue
                holder._parameters[leaf] = nn.Parameter(_along(parameter.detach(), dims[name], gone))
                stack.callback(holder._parameters.__setitem__, leaf, parameter)
                continue
            module = modules[name]
            if isinstance(module, nn.LayerNorm):
                module.forward = _partial_norm(module, gone)  # type: ignore[method-assign]
                stack.callback(module.__dict__.pop, "forward")
            elif makes:
                stack.callback(module.register_forward_hook(_zero_outputs(gone)).remove)
            else:
                stack.callback(module.register_forward_pre_hook(_zero_inputs(gone)).remove)
        yield


def _zero_outputs(gone: set[int]) -> Any:
    return lambda module, _args, output: _along(output, _channel_dim(module, output), gone)


def _zero_inputs(gone: set[int]) -> Any:
    return lambda module, args: (_along(args[0], _channel_dim(module, args[0]), gone), *args[1:])
