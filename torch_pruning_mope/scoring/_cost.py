"""Cost of scoring, estimated before it starts."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
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
        at_least: True for lower bounds: a path evaluates units again, how often shows on the way.
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

    shared, own, counted, plain = 0.0, 0.0, 0.0, 0
    autocasting = torch.autocast(encoder.device.type, dtype, enabled=dtype is not None)
    with torch.inference_mode(), evaluation_mode(encoder.model), autocasting:  # as the engine runs
        for name, x in inputs.items():
            walk = engine.walk(name)
            part = _typical(walk, x, batch_size or default_batch_size(walk, x, encoder.device))
            weight = len(x) / len(part) * scale
            # What follows an ablation is run; the rest of its sub-layer is small where it can be entered.
            begins = [walk.resumes(single_ablation(unit)) for unit in units if unit.tower == name]
            whole = weight * (2 if begins else 1)  # once for the baseline, once while walking
            seconds, macs = (_costs(walk, part, cost) for cost in (timed, count_multiply_adds))
            shared += whole * sum(seconds[:2])
            own += weight * sum(seconds[1 + begin] for begin in begins)
            counted += whole * sum(macs[:2]) + weight * sum(macs[1 + begin] for begin in begins)
            full = x[: len(part)].to(encoder.device)
            plain += int(len(x) / len(full) * scale * count_multiply_adds(partial(encoder.embed, name, full)))
            if "neurons" in kinds and rewire != "none":  # forward, backward; one caption per image
                shared += 3 * pairs.num_images / len(full) * scale * timed(partial(encoder.embed, name, full))
        own += len(units) * scale**2 * timed(_metric_call(encoder, pairs, metric))
    path = interaction in {"greedy", "joint"}
    return ScoringCost(shared + own / devices, round(counted), plain * len(units), len(units), path)


def _costs(walk: Walk, part: Tensor, cost: Callable[[Callable[[], Any]], float]) -> list[Any]:
    """Costs of one chunk: of the stem, and from each step on to the embeddings."""
    stem = partial(walk.stem, part)
    states: list[Any] = [stem()]
    for depth in range(walk.depths):
        states.append(walk.step(depth, states[depth]))
    if isinstance(walk, StreamWalk):
        steps = [cost(partial(walk.step, depth, state)) for depth, state in enumerate(states)]
        return [cost(stem), *list(accumulate(reversed(steps)))[::-1]]
    return [cost(stem), *(cost(partial(walk.run, depth, state)) for depth, state in enumerate(states))]


def _typical(walk: Walk, inputs: Tensor, size: int) -> Tensor:
    """A chunk of the mean length among those that the engine will make; of few inputs, as for several units together."""
    lengths = walk.lengths(inputs)
    part = inputs[:size]
    if lengths is not None:
        order = lengths.cpu().argsort(stable=True).split(size)
        cut = [int(lengths[rows].max()) for rows in order]
        mean = sum(length * len(rows) for length, rows in zip(cut, order, strict=True)) / len(inputs)
        best = min(range(len(order)), key=lambda i: (abs(cut[i] - mean), -len(order[i])))
        part = inputs[order[best]][:, : cut[best]]
    return part.repeat(max(1, size // len(part)), *[1] * (part.ndim - 1))


def _metric_call(encoder: EncoderCore, pairs: Pairs, metric: MetricLike) -> Callable[[], Any]:
    """A call of the metric on random embeddings."""
    measure = resolve_metric(metric, float(torch.as_tensor(encoder.logit_scale).detach()))
    width = encoder.embed("image", pairs.images[:2]).shape[1]
    generator = torch.Generator().manual_seed(0)
    images, texts = (
        normalised(torch.randn(1, count, width, generator=generator).to(encoder.device), "image")
        for count in (pairs.num_images, pairs.num_captions)
    )
    return partial(measure.values, images, texts, pairs.image_index.to(encoder.device))
