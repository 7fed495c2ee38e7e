"""Cost of scoring, estimated before it starts."""

from collections import Counter
from collections.abc import Callable, Collection
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .._state import evaluation_mode
from ..cost import count_multiply_adds, median_seconds
from ..data import Pairs
from ..encoder import EncoderCore, TowerName
from ..metrics import MetricLike, normalised, resolve_metric
from ..towers import KINDS
from ._engine import PrefixEngine, default_batch_size
from ._families import Interaction
from ._meter import PairsLike
from ._rewire import Rewiring
from ._units import enumerate_units, single_ablation
from ._walk import StreamWalk, Walk


@dataclass(frozen=True)
class ScoringCost:
    """Cost of scoring one model.

    Attributes:
        seconds: Wall-clock time on the devices asked for.
        multiply_adds: Multiply-adds of the towers by the exact engine.
        plain_multiply_adds: Multiply-adds of the towers if both were evaluated in full once per unit.
        evaluations: Number of evaluations.
        at_least: Whether these are lower bounds: a path evaluates units again, how often shows on the way.
    """

    seconds: float
    multiply_adds: int
    plain_multiply_adds: int
    evaluations: int
    at_least: bool = False

    def __str__(self) -> str:
        least = "at least " if self.at_least else ""
        return (
            f"{least}{self.evaluations} evaluations, {self.seconds:.0f} s; {self.multiply_adds / 1e12:.2f} T multiply-adds, "
            f"{self.plain_multiply_adds / max(1, self.multiply_adds):.1f} times fewer than the plain loop's"
        )


@dataclass(frozen=True)
class _Tower:
    """Costs of one tower per chunk: of what comes before, and from each step on to the embeddings."""

    stem: float
    after: list[float]


def estimate_cost(
    encoder: EncoderCore,
    pairs: PairsLike,
    *,
    num_images: int | None = None,
    metric: MetricLike = "contrastive_loss",
    kinds: Collection[str] = ("head", "neurons"),
    groups: int = 16,
    interaction: Interaction = "nested",
    rewire: Rewiring = "taylor",
    towers: Collection[TowerName] = ("image", "text"),
    batch_size: int | None = None,
    autocast: str | None = None,
    devices: int = 1,
    repeats: int = 3,
) -> ScoringCost:
    """Estimates the cost of :func:`score` from timing one batch of each tower.

    Args:
        encoder: The dual encoder; left as it is.
        pairs: Calibration pairs, or a sample of them.
        num_images: Number of images to be scored on; by default those of ``pairs``, with as many captions each.
        metric: See :func:`score`.
        kinds: See :func:`score`.
        groups: See :func:`score`.
        interaction: See :func:`score`. Of ``greedy`` and ``joint``, the first look at every unit is counted.
        rewire: Gradients for it are counted unless it is ``none``.
        towers: See :func:`score`.
        batch_size: See :func:`score`.
        autocast: See :func:`score`.
        devices: Processes that share the units, each on a device like this one.
        repeats: Number of times that each part is timed; the median counts.

    Returns:
        The cost.

    Raises:
        ValueError: If ``kinds`` or ``devices`` is out of range.
    """
    if set(kinds) - set(KINDS) or devices < 1:
        raise ValueError(f"kinds must be some of {KINDS} and devices at least 1; found {kinds!r} and {devices}.")
    pairs = Pairs.coerce(pairs)
    scale = (num_images or pairs.num_images) / pairs.num_images
    units = enumerate_units(encoder, kinds, {}, groups, towers)
    inputs: dict[TowerName, Tensor] = {"image": pairs.images, "text": pairs.tokens}
    dtype = None if autocast is None else getattr(torch, autocast)
    timer = _Timer(encoder, dtype, repeats)

    engine = PrefixEngine(encoder, batch_size=batch_size)
    shared, own, counted, whole_plain = 0.0, 0.0, 0.0, 0
    for name, x in inputs.items():
        walk = engine.walk(name)
        size = batch_size or default_batch_size(walk, x, encoder.device)
        part = _typical(walk, x, size)
        part = part.repeat(max(1, size // len(part)), *[1] * (part.ndim - 1))  # few inputs: several units run together
        weight = len(x) / len(part) * scale
        mine = Counter(walk.depth(single_ablation(unit)) for unit in units if unit.tower == name)
        blocks = Counter(walk.depth(single_ablation(u)) for u in units if u.tower == name and u.kind == "block")
        seconds, macs = timer.tower(walk, part, _seconds), timer.tower(walk, part, _macs)
        dense_twice = 1 + (1 if mine else 0)  # once for the baseline, once while walking
        shared += weight * dense_twice * (seconds.stem + seconds.after[0])
        own += weight * _ablations(walk, seconds, mine, blocks)
        counted += weight * (dense_twice * (macs.stem + macs.after[0]) + _ablations(walk, macs, mine, blocks))
        full = x[: len(part)].to(encoder.device)
        whole_plain += int(len(x) / len(full) * scale * timer.once(partial(encoder.embed, name, full), _macs))
        if "neurons" in kinds and rewire != "none":
            gradients = timer.once(partial(encoder.embed, name, full), _seconds)
            shared += 3 * pairs.num_images / len(full) * scale * gradients  # forward, backward; one caption per image
    own += len(units) * scale**2 * _metric_seconds(encoder, pairs, metric, timer)
    return ScoringCost(
        shared + own / devices, round(counted), whole_plain * len(units), len(units), interaction in {"greedy", "joint"}
    )


def _ablations(walk: Walk, cost: _Tower, units: "Counter[int]", blocks: "Counter[int]") -> float:
    """All units of a tower: what follows is run; the rest of their sub-layer is small where it can be entered."""
    entered = isinstance(walk, StreamWalk)
    end = len(cost.after) - 1  # units of a pool run with the readout
    own = sum((count - blocks[depth]) * cost.after[min(depth + entered, end)] for depth, count in units.items())
    return own + sum(count * cost.after[depth + walk.per_block * entered] for depth, count in blocks.items())


def _typical(walk: Walk, inputs: Tensor, size: int) -> Tensor:
    """A chunk of the mean length among those that the engine will make."""
    lengths = walk.lengths(inputs)
    if lengths is None:
        return inputs[:size]
    order = lengths.cpu().argsort(stable=True).split(size)
    cut = [int(lengths[rows].max()) for rows in order]
    mean = sum(length * len(rows) for length, rows in zip(cut, order, strict=True)) / len(inputs)
    best = min(range(len(order)), key=lambda i: (abs(cut[i] - mean), -len(order[i])))
    return inputs[order[best]][:, : cut[best]]


def _metric_seconds(encoder: EncoderCore, pairs: Pairs, metric: MetricLike, timer: "_Timer") -> float:
    measure = resolve_metric(metric, float(torch.as_tensor(encoder.logit_scale).detach()))
    width = timer.embed(lambda: encoder.embed("image", pairs.images[:2].to(encoder.device))).shape[1]
    generator = torch.Generator().manual_seed(0)
    images, texts = (
        normalised(torch.randn(1, count, width, generator=generator).to(encoder.device), "image")
        for count in (pairs.num_images, pairs.num_captions)
    )
    index = pairs.image_index.to(encoder.device)
    return timer.once(lambda: measure.values(images, texts, index), _seconds)


_Measure = Callable[["_Timer", Callable[[], Any]], float]


@dataclass(frozen=True)
class _Timer:
    encoder: EncoderCore
    dtype: torch.dtype | None
    repeats: int

    def tower(self, walk: Walk, part: Tensor, measure: _Measure) -> _Tower:
        """Each part of a tower on one chunk."""
        device = self.encoder.device
        streams = [self.embed(lambda: walk.stem(part.to(device)))]
        for depth in range(walk.depths):
            streams.append(self.embed(partial(walk.step, depth, streams[depth])))
        ends = [partial(walk.run, depth, stream) for depth, stream in enumerate(streams)]
        stem = self.once(lambda: walk.stem(part.to(device)), measure)
        if not isinstance(walk, StreamWalk):
            return _Tower(stem, [self.once(end, measure) for end in ends])
        after = [self.once(ends[-1], measure)]
        for depth in reversed(range(walk.depths)):
            after.insert(0, after[0] + self.once(partial(walk.step, depth, streams[depth]), measure))
        return _Tower(stem, after)

    def once(self, function: Callable[[], Any], measure: _Measure) -> float:
        """Cost of one call."""
        cost: float = self.embed(lambda: measure(self, function))
        return cost

    def embed(self, function: Callable[[], Any]) -> Any:
        """Calls something as the engine would."""
        autocast = nullcontext() if self.dtype is None else torch.autocast(self.encoder.device.type, self.dtype)
        with torch.inference_mode(), evaluation_mode(self.encoder.model), autocast:
            return function()


def _seconds(timer: _Timer, function: Callable[[], Any]) -> float:
    """Median wall-clock time."""
    return median_seconds(function, timer.encoder.device, repeats=timer.repeats, warm_up=1)


def _macs(_timer: _Timer, function: Callable[[], Any]) -> float:
    """Multiply-adds of matrix products, convolutions and attention."""
    return float(count_multiply_adds(function))
