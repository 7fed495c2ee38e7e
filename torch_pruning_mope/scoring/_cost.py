"""Cost of scoring, estimated before it starts."""

from collections.abc import Callable, Collection, Sequence
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
from ..towers import KINDS, Unit
from ._engine import PrefixEngine, default_batch_size
from ._families import Interaction
from ._meter import PairsLike
from ._replay import Walk
from ._rewire import Rewiring
from ._units import enumerate_units, single_ablation
from ._walk import StreamWalk


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
    engine = PrefixEngine(encoder, batch_size=batch_size)

    def timed(function: Callable[[], Any]) -> float:
        return median_seconds(function, encoder.device, repeats=repeats, warm_up=1)

    shared, own, counted, whole_plain = 0.0, 0.0, 0.0, 0
    autocasting = torch.autocast(encoder.device.type, dtype, enabled=dtype is not None)
    with torch.inference_mode(), evaluation_mode(encoder.model), autocasting:  # as the engine runs
        for name, x in inputs.items():
            walk = engine.walk(name)
            size = batch_size or default_batch_size(walk, x, encoder.device)
            part = _typical(walk, x, size)
            part = part.repeat(
                max(1, size // len(part)), *[1] * (part.ndim - 1)
            )  # few inputs: several units run together
            weight = len(x) / len(part) * scale
            mine = [unit for unit in units if unit.tower == name]
            dense_twice = 2 if mine else 1  # once for the baseline, once while walking
            (first, seconds), (first_macs, macs) = (_parts(walk, part, encoder, cost) for cost in (timed, _macs))
            shared += weight * dense_twice * (first + seconds[0])
            own += weight * _ablations(walk, seconds, mine)
            counted += weight * (dense_twice * (first_macs + macs[0]) + _ablations(walk, macs, mine))
            full = x[: len(part)].to(encoder.device)
            whole_plain += int(len(x) / len(full) * scale * _macs(partial(encoder.embed, name, full)))
            if "neurons" in kinds and rewire != "none":  # forward, backward; one caption per image
                shared += 3 * pairs.num_images / len(full) * scale * timed(partial(encoder.embed, name, full))
        own += len(units) * scale**2 * timed(_metric_call(encoder, pairs, metric))
    return ScoringCost(
        shared + own / devices, round(counted), whole_plain * len(units), len(units), interaction in {"greedy", "joint"}
    )


def _macs(function: Callable[[], Any]) -> float:
    return float(count_multiply_adds(function))


def _parts(
    walk: Walk, part: Tensor, encoder: EncoderCore, cost: Callable[[Callable[[], Any]], float]
) -> tuple[float, list[float]]:
    """Costs of one chunk: of the stem, and from each step on to the embeddings."""
    stem = partial(walk.stem, part.to(encoder.device))
    streams: list[Any] = [stem()]
    for depth in range(walk.depths):
        streams.append(walk.step(depth, streams[depth]))
    if not isinstance(walk, StreamWalk):
        return cost(stem), [cost(partial(walk.run, depth, stream)) for depth, stream in enumerate(streams)]
    first, after = cost(stem), [cost(partial(walk.run, walk.depths, streams[-1]))]
    for depth in reversed(range(walk.depths)):
        after.insert(0, after[0] + cost(partial(walk.step, depth, streams[depth])))
    return first, after


def _ablations(walk: Walk, after: Sequence[float], units: Sequence[Unit]) -> float:
    """Cost of the units of a tower: what follows is run; the rest of their sub-layer is small where it can be entered."""
    entered, total = isinstance(walk, StreamWalk), 0.0
    for unit in units:
        skipped = walk.per_block if unit.kind == "block" else 1
        # Units of a pool run with the readout.
        total += after[min(walk.depth(single_ablation(unit)) + skipped * entered, len(after) - 1)]
    return total


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


def _metric_call(encoder: EncoderCore, pairs: Pairs, metric: MetricLike) -> Callable[[], Any]:
    """A call of the metric on random embeddings."""
    measure = resolve_metric(metric, float(torch.as_tensor(encoder.logit_scale).detach()))
    width = encoder.embed("image", pairs.images[:2].to(encoder.device)).shape[1]
    generator = torch.Generator().manual_seed(0)
    images, texts = (
        normalised(torch.randn(1, count, width, generator=generator).to(encoder.device), "image")
        for count in (pairs.num_images, pairs.num_captions)
    )
    return partial(measure.values, images, texts, pairs.image_index.to(encoder.device))
