"""Attention and gated MLPs by the names of their layers: one table for all libraries."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

_SEPARATE = (
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("q_lin", "k_lin", "v_lin"),
    ("query_proj", "key_proj", "value_proj"),
    ("q", "k", "v"),
    ("to_q", "to_k", "to_v"),
    ("wq", "wk", "wv"),
)
_FUSED = ("qkv", "Wqkv", "qkv_proj", "in_proj", "query_key_value", "to_qkv", "c_attn")
_OUTPUT = (
    "out_proj", "o_proj", "out_lin", "proj", "projection", "output_proj", "out", "o", "Wo", "wo", "c_proj", "dense",
    "to_out.0", "output.dense",
)  # fmt: skip
_AROUND = ("output.dense", "dense", "output")
"""Where the output layer is a neighbour of the module that holds the others."""
_HEADS = ("num_attention_heads", "num_heads", "n_heads", "heads", "n_head", "nhead")
_ALL_HEADS = ("all_head_size", "inner_dim", "attn_dim", "embed_dim", "dim", "hidden_size", "d_model")
_KEY_HEADS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads")


@dataclass
class Named:
    """Layers that are named as those around units are.

    Attributes:
        owner: Name of the smallest module that holds all of them.
        kind: What the units would be.
        inputs: Names of the layers that make the channels; one, if they are fused.
        output: Name of the layer that takes them.
        units: How many there are: heads, or groups of them that share keys; None for neurons.
        counted: Name of the module whose attributes hold how many.
        counts: Ways to read them, to be tried in turn: attributes, each with the channels that it counts as one.
        problem: Why they cannot be pruned, or nothing.
    """

    owner: str
    kind: Literal["head", "neurons"]
    inputs: tuple[str, ...]
    output: str
    units: int | None = None
    counted: str = ""
    counts: tuple[tuple[tuple[str, int], ...], ...] = ((),)
    problem: str = ""


def named_units(root: nn.Module) -> Iterator[Named]:
    """Attention and gated MLPs with a fused first layer in an encoder, by the names of their layers."""
    modules = dict(root.named_modules())
    for name, module in modules.items():
        found = _attention(name, module, modules) or _gated(name, module)
        if found is not None:
            yield found


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _linear(modules: dict[str, nn.Module], name: str) -> nn.Linear | None:
    module = modules.get(name)
    return module if type(module) is nn.Linear else None


def _attention(name: str, module: Any, modules: dict[str, nn.Module]) -> Named | None:
    heads: int | None = next((value for attr in _HEADS if isinstance(value := _number(module, attr), int)), None)
    named = [*_SEPARATE, *((each,) for each in _FUSED)]
    names = ([_join(name, each) for each in names] for names in named)
    inputs = next((tuple(found) for found in names if all(_linear(modules, each) for each in found)), None)
    if inputs is None or not heads:
        return None
    parent = name.rpartition(".")[0]
    places = [(name, _join(name, each)) for each in _OUTPUT] + [(parent, _join(parent, each)) for each in _AROUND]
    owner, output = next(((o, each) for o, each in places if _linear(modules, each)), (name, ""))
    layers: list[Any] = [modules[each] for each in inputs]
    if not output:
        return Named(owner, "head", inputs, "", problem="no output layer is known by its name")
    width = int(modules[output].in_features)  # type: ignore[arg-type]
    rows = [layer.out_features for layer in layers]
    size, rest = divmod(width, heads)
    if not rest and rows in ([3 * width], [width] * 3):
        return Named(owner, "head", inputs, output, heads, name, _counts(module, heads, size))
    keys = 0 if rest or len(rows) == 1 else rows[-1] // size
    if not keys or heads % keys or rows != [width, keys * size, keys * size]:
        return Named(
            owner, "head", inputs, output, problem="queries, keys and values are not of widths that go together"
        )
    counts = tuple((*way, *_held(module, _KEY_HEADS, keys, width // keys)) for way in _counts(module, heads, size))
    return Named(owner, "head", inputs, output, keys, name, counts)


def _number(module: Any, attribute: str) -> Any:
    found = vars(module).get(attribute)
    return getattr(getattr(module, "config", None), attribute, None) if found is None else found


def _counts(module: nn.Module, heads: int, size: int) -> tuple[tuple[tuple[str, int], ...], ...]:
    """Attributes that hold the number of heads, and those that may hold that of all their channels, or the model's width."""
    own = vars(module)
    number = _held(module, _HEADS, heads, size)
    channels = [(name, 1) for name in _ALL_HEADS if own.get(name) == heads * size]
    return tuple(dict.fromkeys((tuple(number + channels[:1]), tuple(number), tuple(number + channels))))


def _held(module: nn.Module, names: tuple[str, ...], value: int, size: int) -> list[tuple[str, int]]:
    """Attributes that hold a number, each with the channels that it counts as one."""
    return [(name, size) for name in names if type(vars(module).get(name)) is int and vars(module)[name] == value]


def _gated(name: str, module: nn.Module) -> Named | None:
    """A layer of which another takes half as many channels as it makes."""
    layers = [(child, each) for child, each in module.named_children() if type(each) is nn.Linear]
    for place, (child, first) in enumerate(layers):
        for other, second in layers[place + 1 :]:
            if first.out_features == 2 * second.in_features:
                return Named(name, "neurons", (_join(name, child),), _join(name, other))
    return None
