"""Number of calibration pairs that it takes to tell the units at a cut apart."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..data import Pairs
from ..encoder import EncoderCore
from ._meter import PairsLike
from ._score import score
from ._table import ScoreTable

_NAMES = {"head": "heads", "neurons": "neuron groups", "block": "layers", "attention": "attentions", "mlp": "MLPs"}


@dataclass(frozen=True)
class Separation:
    """Units that are far enough from a cut to be sure of their side.

    Attributes:
        kind: ``head``, ``neurons`` or ``block``.
        units: Number of units, over all layers of the towers that were scored.
        remove: Number of them that go.
        confidence: Confidence of each statement "this unit is on this side", one-sided.
        images: Number of calibration images seen.
        separated: Number of units separated with these.
        predicted: Numbers of images, each with the number of units that so many are expected to separate.
    """

    kind: str
    units: int
    remove: int
    confidence: float
    images: int
    separated: int
    predicted: dict[int, float]

    def __str__(self) -> str:
        text = f"with {self.images:,} images, {self.separated} of {self.units} {_NAMES[self.kind]} are separated"
        for images, expected in self.predicted.items():
            text += f"; {images:,} would separate about {expected:.0f}"
        return text + f" (cut after {self.remove}, {100 * self.confidence:g} % confidence each)"


def separation(
    table: ScoreTable, kind: str, remove: int, *, images: Sequence[int] = (1000, 4000), confidence: float = 0.95
) -> Separation:
    """Estimates how well a table tells units apart at a cut, and how well tables from more images would."""
    # A unit is separated if its score is further from the cut (half-way between the last that goes and the first that stays)
    # than its standard error allows for. Standard errors fall with the root of the number of images. Scores are spread by
    # their errors too, so true distances are taken to be normal with what is left of the observed spread.
    scores = table.of(kind)
    if not 0 < remove < len(scores):
        raise ValueError(
            f"remove must be between 1 and {len(scores) - 1}, the table's units of {kind!r}; found {remove}."
        )
    if not 0.5 < confidence < 1:
        raise ValueError(f"confidence must be between 0.5 and 1; found {confidence}.")
    values = torch.tensor([score.value for score in scores], dtype=torch.double)
    errors = torch.tensor([score.stderr for score in scores], dtype=torch.double)
    seen = scores[0].images
    if not torch.isfinite(errors).all() or seen is None:
        raise ValueError(
            "table must hold standard errors and numbers of images; found none. Score with recall or a loss."
        )
    ordered = values.sort().values
    gaps = values - (ordered[remove - 1] + ordered[remove]) / 2
    z = NormalDist().inv_cdf(confidence)
    return Separation(
        kind=kind,
        units=len(scores),
        remove=remove,
        confidence=confidence,
        images=seen,
        separated=int((gaps.abs() > z * errors).sum()),
        predicted={count: _expected(gaps, errors, z, seen / count) for count in images},
    )


def _expected(gaps: Float[Tensor, "U"], errors: Float[Tensor, "U"], z: float, ratio: float) -> float:
    """Expected number of separated units once the errors' squares have shrunk by a ratio."""
    spread = (gaps.square().mean() - errors.square().mean()).clamp(min=1e-12 * float(gaps.square().mean()) + 1e-30)
    trust = spread / (spread + errors.square())
    then = errors * ratio**0.5
    # A recall may change on no image of a few: its error is then 0.
    centre, width = trust * gaps, (trust * errors.square() + then.square()).sqrt().clamp(min=1e-30)
    beyond = torch.special.ndtr((-z * then - centre) / width) + torch.special.ndtr((centre - z * then) / width)
    return float(beyond.sum())


def calibration_guidance(
    encoder: EncoderCore,
    pairs: PairsLike,
    kind: str,
    remove: int,
    *,
    pilot: int = 250,
    images: Sequence[int] = (1000, 4000),
    confidence: float = 0.95,
    **options: Any,
) -> Separation:
    """Scores units on a few images, and estimates how many images would separate how many units.

    Args:
        encoder: The dual encoder; left as it is.
        pairs: Calibration pairs.
        kind: Kind of units.
        remove: Number of them that go.
        pilot: Number of images to score on, the first of ``pairs``.
        images: Numbers of images to look ahead to.
        confidence: One-sided, of each unit alone.
        options: Further arguments of :func:`score`.

    Returns:
        The units that the pilot separates and that more images would.

    Raises:
        ValueError: If an argument is out of range.
    """
    if pilot < 2:
        raise ValueError(f"pilot must be at least 2 images; found {pilot}.")
    few = Pairs.coerce(pairs).first(pilot)
    table = score(encoder, few, kinds=(kind,), **options)
    return separation(table, kind, remove, images=images, confidence=confidence)
