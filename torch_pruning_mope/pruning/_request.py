"""What a pruner is asked to remove, and the Torch-Pruning arguments that make it remove exactly that."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

from torch import nn

from ..towers import Block, Prunable

Ratios = Mapping[nn.Module | tuple[nn.Module, ...], float]


@dataclass(frozen=True)
class Layer:
    """One block of one tower.

    Attributes:
        tower: ``image``, ``text`` or ``decoder``.
        index: Position of the block in its tower.
        block: The block.
    """

    tower: Literal["image", "text", "decoder"]
    index: int
    block: Block


@dataclass(frozen=True)
class Counts:
    """Units removed, or left: heads, FFN neurons and residual channels, summed over what was asked for."""

    heads: int = 0
    neurons: int = 0
    width: int = 0


class _HeadRatio(float):
    """A layer's head ratio that remembers the head count it is a share of."""

    heads: int


def _scheduler(ratio: float, steps: int) -> list[float]:
    """Cumulative ratios per step; for heads, relative to what is left, because that is how Torch-Pruning applies them.

    Local iterative head pruning multiplies the cumulative ratio with the *current* head count and over-prunes (trap I).

    Returns:
        One ratio per step, after a 0.
    """
    if not isinstance(ratio, _HeadRatio):
        return [ratio * step / steps for step in range(steps + 1)]
    gone = [_share(ratio * step / steps, ratio.heads) for step in range(steps + 1)]
    relative = [0.0]
    for before, after in pairwise(gone):
        # Half a head less than wanted, since Torch-Pruning takes the ceiling.
        relative.append((after - before - 0.5) / (ratio.heads - before) if after > before else 0.0)
    return relative


def _share(ratio: float, total: int) -> int:
    """How many of ``total`` a ratio removes: the ceiling, as Torch-Pruning rounds, free of floating-point surprises."""
    return math.ceil(ratio * total - 1e-9)


def _exact(removed: int, total: int) -> float:
    """A ratio by which Torch-Pruning, which keeps ``int(total * (1 - ratio))``, removes exactly ``removed``."""
    return 1 - (total - removed + 0.5) / total if removed else 0.0


@dataclass(frozen=True)
class PruningRequest:
    """Ratios over some layers; see :meth:`torch_pruning_mope.DualEncoder.pruner_arguments` for the fields.

    Raises:
        ValueError: If a ratio is outside [0, 1) or would empty a layer.
    """

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
        """Checks everything before anything is built.

        Raises:
            ValueError: If a field is out of range.
        """
        for name in ("head_ratio", "ffn_ratio", "width_ratio"):
            _check_ratio(name, getattr(self, name))
        for key, ratio in self.pruning_ratio_dict.items():
            names = [type(module).__name__ for module in (key if isinstance(key, tuple) else (key,))]
            _check_ratio(f"pruning_ratio_dict[{', '.join(names)}]", ratio)
        if self.iterative_steps < 1:
            raise ValueError(f"iterative_steps must be at least 1; found {self.iterative_steps}.")
        if self.round_to is not None and self.round_to < 1:
            raise ValueError(f"round_to must be at least 1, or None; found {self.round_to}.")
        self._check_no_layer_empties()

    def _free(self, units: Prunable) -> bool:
        """Whether none of the layers around some units is ignored, and those that make them have no ratio of their own."""
        own = [module for key in self.pruning_ratio_dict for module in (key if isinstance(key, tuple) else (key,))]
        taken = {inner for module in (*own, *self.ignored_layers) for inner in module.modules()}
        ignored = {inner for module in self.ignored_layers for inner in module.modules()}
        return units.output not in ignored and not any(
            inner in taken for module in units.sources for inner in module.modules()
        )

    @property
    def attentions(self) -> list[Prunable]:
        """Attention sub-layers that the head ratio is for."""
        found = [layer.block.attention for layer in self.layers]
        return [units for units in found if units is not None and units.channels and self._free(units)]

    @property
    def feed_forwards(self) -> list[Prunable]:
        """MLP sub-layers that the FFN ratio is for."""
        found = [layer.block.feed_forward for layer in self.layers]
        return [units for units in found if units is not None and units.channels and self._free(units)]

    @property
    def widths(self) -> list[tuple[nn.Module, int]]:
        """Layers whose output channels are a residual width that the width ratio is for, each with that width."""
        found = [output for outputs in self.streams.values() for output in outputs]
        return [(output, _width(output)) for output in found]

    @property
    def asked(self) -> Counts:
        """How many units all steps together remove through the ratios (layers with ratios of their own not counted)."""
        heads = [attention.num_units for attention in self.attentions]
        neurons = [feed_forward.num_units for feed_forward in self.feed_forwards]
        return Counts(
            heads=self._total(self.head_ratio, heads),
            neurons=self._total(self.ffn_ratio, neurons),
            width=sum(_share(self.width_ratio, width) for _, width in self.widths),
        )

    def _total(self, ratio: float, sizes: Sequence[int]) -> int:
        return _share(ratio, sum(sizes)) if self.global_pruning else sum(_share(ratio, size) for size in sizes)

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
                bad = any(_share(ratio, size) > size - least for size in sizes) and ratio > 0
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
        heads = sum(attention.num_units for attention in attentions)
        asked = self.asked
        if self.head_ratio and attentions:
            # Torch-Pruning removes heads only where some channel ratio is above 0 (trap H).
            ratios[tuple(source for attention in attentions for source in attention.sources)] = self.head_ratio
        if self.ffn_ratio and feed_forwards:
            sizes = [feed_forward.num_units for feed_forward in feed_forwards]
            if self.global_pruning:
                firsts = tuple(source for feed_forward in feed_forwards for source in feed_forward.sources)
                ratios[firsts] = _exact(asked.neurons, sum(sizes))
            else:
                for feed_forward, size in zip(feed_forwards, sizes, strict=True):
                    ratios[tuple(feed_forward.sources)] = _exact(_share(self.ffn_ratio, size), size)
        if self.width_ratio:
            for output, width in self.widths:
                ratios[output] = _exact(_share(self.width_ratio, width), width)
        ratios.update(self.pruning_ratio_dict)
        by_layer: dict[nn.Module, float] = {}
        num_heads: dict[nn.Module, int] = {}
        for sublayer in attentions:
            ratio = _HeadRatio(self.head_ratio)
            ratio.heads = sublayer.num_units
            for projection in sublayer.sources:
                num_heads[projection] = sublayer.num_units
                by_layer[projection] = ratio
        return {
            "pruning_ratio": 0.0,
            "pruning_ratio_dict": ratios,
            "global_pruning": self.global_pruning,
            "iterative_steps": self.iterative_steps,
            "iterative_pruning_ratio_scheduler": _scheduler,
            "round_to": self.round_to,
            "ignored_layers": list(self.ignored_layers),
            "head_pruning_ratio": _exact(asked.heads, heads) if self.global_pruning and heads else self.head_ratio,
            "head_pruning_ratio_dict": None if self.global_pruning else by_layer,
            "prune_num_heads": True,
            "prune_head_dims": False,
            "num_heads": num_heads,
            # Torch-Pruning's own defaults are shared between pruners and get written to (trap K).
            "in_channel_groups": {},
            "out_channel_groups": {},
            "channel_groups": {},
        }


def _width(output: Any) -> int:
    return int(output.weight.shape[0])


def _check_ratio(name: str, ratio: object) -> None:
    """Raises unless ``ratio`` is a number in [0, 1).

    Raises:
        TypeError: If it is no number.
        ValueError: If it is outside.
    """
    if isinstance(ratio, bool) or not isinstance(ratio, int | float):
        raise TypeError(f"{name} must be a number in [0, 1); found {type(ratio).__name__}.")
    if not 0 <= ratio < 1:
        raise ValueError(
            f"{name} must be in [0, 1); found {ratio}. Whole layers are removed with DualEncoder.remove_blocks."
        )
