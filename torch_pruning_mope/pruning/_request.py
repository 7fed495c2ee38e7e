"""Requests to a pruner, and the Torch-Pruning arguments that make it remove exactly what is asked for."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch_pruning as tp
from torch import nn

from ..towers import Counts, Layer, Prunable
from ._ratios import HeadCounts, HeadRatio, Ratio, scheduler, share, width_of

Ratios = Mapping[nn.Module | tuple[nn.Module, ...], float]


@dataclass(frozen=True)
class PruningRequest:
    """Ratios over some layers; see :meth:`torch_pruning_mope.DualEncoder.pruner_arguments` for the fields."""

    layers: Sequence[Layer]
    streams: Mapping[str, Sequence[nn.Module]]
    head_ratio: float = 0.0
    ffn_ratio: float = 0.0
    width_ratio: float = 0.0
    global_pruning: bool = False
    iterative_steps: int = 1
    round_to: int | None = None
    ignored_layers: Sequence[nn.Module] = ()
    pruning_ratio_dict: Ratios = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Checks everything before anything is built."""
        for name in ("head_ratio", "ffn_ratio", "width_ratio"):
            _check_ratio(name, getattr(self, name))
        for key, ratio in self.pruning_ratio_dict.items():
            names = [type(module).__name__ for module in (key if isinstance(key, tuple) else (key,))]
            _check_ratio(f"pruning_ratio_dict[{', '.join(names)}]", ratio)
        _check_count("iterative_steps", self.iterative_steps)
        if self.round_to is not None:
            _check_count("round_to", self.round_to, ", or None")
        _check_modules("ignored_layers", self.ignored_layers)
        for key in self.pruning_ratio_dict:
            _check_modules("pruning_ratio_dict's keys", key if isinstance(key, tuple) else (key,))
        self._check_no_head_is_cut()
        self._check_no_layer_empties()

    def _check_no_head_is_cut(self) -> None:
        """Raises if projections of an attention have a channel ratio of their own, which would cut through heads."""
        projections = {s for layer in self.layers if layer.block.attention for s in layer.block.attention.sources}
        for key, ratio in self.pruning_ratio_dict.items():
            cut = {inner for module in (key if isinstance(key, tuple) else (key,)) for inner in module.modules()}
            if ratio and cut & projections:
                raise ValueError(
                    f"pruning_ratio_dict must be 0 for the projections of attention; found {ratio}, of channels, which "
                    "would cut through heads. Give head_ratio, towers and ignored_layers."
                )

    @property
    def modules(self) -> set[nn.Module]:
        """The modules that it names."""
        keys = [key if isinstance(key, tuple) else (key,) for key in self.pruning_ratio_dict]
        return {*self.ignored_layers, *(module for key in keys for module in key)}

    @property
    def attentions(self) -> list[Prunable]:
        """Attention sub-layers that the head ratio is for."""
        return self._counted(layer.block.attention for layer in self.layers)

    @property
    def feed_forwards(self) -> list[Prunable]:
        """MLP sub-layers that the FFN ratio is for."""
        return self._counted(layer.block.feed_forward for layer in self.layers)

    def _counted(self, found: Iterable[Prunable | None]) -> list[Prunable]:
        """Those with units, of which no layer around them is ignored and none that makes them has a ratio of its own."""
        taken = {inner for module in self.modules for inner in module.modules()}
        ignored = {inner for module in self.ignored_layers for inner in module.modules()}
        return [
            units
            for units in found
            if units is not None
            and units.channels
            and units.output not in ignored
            and not any(inner in taken for module in units.sources for inner in module.modules())
        ]

    @property
    def widths(self) -> list[tuple[nn.Module, int]]:
        """Layers whose output channels are a residual width that the width ratio is for, each with that width."""
        found = [output for outputs in self.streams.values() for output in outputs]
        return [(output, width_of(output)) for output in found]

    @property
    def asked(self) -> Counts:
        """Number of units that all steps together remove through the ratios, without layers with ratios of their own."""
        heads = [attention.num_units for attention in self.attentions]
        neurons = [feed_forward.num_units for feed_forward in self.feed_forwards]
        return Counts(
            heads=self._total(self.head_ratio, heads),
            neurons=self._total(self.ffn_ratio, neurons),
            width=sum(share(self.width_ratio, width) for _, width in self.widths),
        )

    def _total(self, ratio: float, sizes: Sequence[int]) -> int:
        return share(ratio, sum(sizes)) if self.global_pruning else sum(share(ratio, size) for size in sizes)

    def _check_no_layer_empties(self) -> None:
        for name, ratio, kind, sizes in (
            ("head_ratio", self.head_ratio, "head", [a.num_units for a in self.attentions]),
            ("ffn_ratio", self.ffn_ratio, "neuron", [f.num_units for f in self.feed_forwards]),
            ("width_ratio", self.width_ratio, "residual channel", [width for _, width in self.widths]),
        ):
            least = self.round_to or 1 if kind != "head" else 1
            if self.global_pruning and kind != "residual channel":
                largest = sum(max(0, size - least) for size in sizes)
                bad, most = self._total(ratio, sizes) > largest, largest / max(1, sum(sizes))
            else:
                bad = any(share(ratio, size) > size - least for size in sizes) and ratio > 0
                most = min(((size - least) / size for size in sizes), default=1.0)
            if bad:
                raise ValueError(
                    f"{name} must leave every layer at least {least} {kind}(s); found {ratio}, the most is "
                    f"{max(0.0, math.floor(most * 1e4) / 1e4)}. Whole layers are removed with DualEncoder.remove_blocks."
                )

    def arguments(self) -> dict[str, Any]:
        """Torch-Pruning's share of the arguments: ratios, scopes and head counts, all fresh objects."""
        ratios: dict[Any, float] = {}
        attentions, feed_forwards = self.attentions, self.feed_forwards
        if self.head_ratio and attentions:
            # Torch-Pruning removes heads only where some channel ratio is above 0.
            ratios[tuple(source for units in attentions for source in units.sources)] = Ratio(self.head_ratio)
        if self.ffn_ratio and feed_forwards:
            ratios[tuple(source for units in feed_forwards for source in units.sources)] = Ratio(self.ffn_ratio)
        if self.width_ratio:
            ratios |= {output: Ratio(self.width_ratio) for output, _ in self.widths}
        ratios |= {key: Ratio(ratio) for key, ratio in self.pruning_ratio_dict.items()}
        heads = {source: units.num_units for units in attentions for source in units.sources}
        return {
            "pruning_ratio": Ratio(0.0),
            "pruning_ratio_dict": ratios,
            "global_pruning": self.global_pruning,
            "iterative_steps": self.iterative_steps,
            "iterative_pruning_ratio_scheduler": scheduler,
            "round_to": self.round_to,
            "ignored_layers": list(self.ignored_layers),
            # Both serve: the dictionary where layers are ranked alone, the ratio where they are ranked together.
            "head_pruning_ratio": Ratio(self.head_ratio),
            "head_pruning_ratio_dict": {
                source: HeadRatio.of(self.head_ratio, count) for source, count in heads.items()
            },
            "prune_num_heads": True,
            "prune_head_dims": False,
            "num_heads": HeadCounts(heads),
            # Torch-Pruning's own defaults are shared between pruners and get written to.
            "in_channel_groups": {},
            "out_channel_groups": {},
            "channel_groups": {},
        }


def _check_ratio(name: str, ratio: object) -> None:
    """Raises unless ``ratio`` is a number in [0, 1)."""
    if isinstance(ratio, bool) or not isinstance(ratio, int | float):
        raise TypeError(f"{name} must be a number in [0, 1); found {type(ratio).__name__}.")
    if not 0 <= ratio < 1:
        raise ValueError(
            f"{name} must be in [0, 1); found {ratio}. Whole layers are removed with DualEncoder.remove_blocks."
        )


def _check_count(name: str, count: object, also: str = "") -> None:
    """Raises unless ``count`` is a whole number above 0."""
    if isinstance(count, bool) or not isinstance(count, int):
        raise TypeError(f"{name} must be a whole number of at least 1{also}; found {count!r}.")
    if count < 1:
        raise ValueError(f"{name} must be at least 1{also}; found {count}.")


def _check_modules(name: str, modules: object) -> None:
    """Raises unless ``modules`` is a list of modules."""
    if not isinstance(modules, Sequence) or isinstance(modules, str):
        raise TypeError(f"{name} must be a list of modules; found {modules!r}.")
    for module in modules:
        if not isinstance(module, nn.Module):
            raise TypeError(
                f"{name} must be modules of encoder.model; found {type(module).__name__}. A module by its name: "
                "encoder.model.get_submodule(name); a bare parameter: the module that holds it."
            )


def note_round_to(pruners: Mapping[Any, Any], round_to: int | None) -> None:
    """Mutates ``customized_pruners``: a pruner's graph then tells importances what it rounds to, which sees no pruner."""
    pruners[tp.ops._OutputOp].round_to = round_to or 1


def round_to_of(graph: tp.DependencyGraph) -> int:
    """The multiple that the neurons left in each MLP are of, where the graph is of a pruner with our arguments; else 1."""
    return int(getattr(graph.CUSTOMIZED_PRUNERS.get(tp.ops._OutputOp), "round_to", 1))
