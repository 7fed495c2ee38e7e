"""Recall of exported files on test pairs, before and after quantisation."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..data import Pairs
from ..encoder import TowerName
from ..errors import ExportError
from ..metrics import Recall, normalised
from ._programs import Runner

_BATCH = 64
Runners = Mapping[TowerName, Runner]


@dataclass(frozen=True)
class Measured:
    """Mean R@1 of the float and of the quantised files in percent, and the mean cosine of their embeddings."""

    pairs: int
    recall_float: float
    recall: float
    cosine: dict[str, float]


def check_disjoint(pairs: Pairs, test: Pairs) -> None:
    """Refuses test pairs that are calibration pairs too."""
    seen, tested = (_digests(each.images) for each in (pairs, test))
    if shared := len(seen & tested):
        raise ValueError(
            f"test_pairs must not be calibration pairs; found {shared} images in both. Calibrate on pairs that are not tested."
        )


def _digests(images: Tensor) -> set[int]:
    return {hash(image.contiguous().numpy().tobytes()) for image in images.cpu()}


def measure(before: Runners, after: Runners, test: Pairs) -> Measured:
    """Embeds test pairs with both."""
    (image, text), (new_image, new_text) = _embeddings(before, test), _embeddings(after, test)
    recall_before, recall_after = (
        100 * float(Recall((1,)).per_image(images[None], texts[None], test.image_index.cpu()).mean())
        for images, texts in ((image, text), (new_image, new_text))
    )
    cosine = {"image": _cosine(image, new_image), "text": _cosine(text, new_text)}
    return Measured(test.num_images, recall_before, recall_after, cosine)


def check_drop(measured: Measured, max_drop: float) -> None:
    """Refuses files that lost too much recall."""
    if not measured.recall_float - measured.recall <= max_drop:
        raise ExportError(
            f"quantised files must lose at most {max_drop:g} points of mean R@1; found {measured.recall_float:.2f} before and "
            f"{measured.recall:.2f} after, on {measured.pairs} test images. Nothing was written. Give more calibration pairs, "
            "a larger max_drop, or export without quantize."
        )


def _embeddings(runners: Runners, pairs: Pairs) -> tuple[Tensor, Tensor]:
    image, text = (
        torch.cat([normalised(runners[tower](part), tower).float() for part in inputs.cpu().split(_BATCH)])
        for tower, inputs in _inputs(pairs)
    )
    return image, text


def _inputs(pairs: Pairs) -> Iterable[tuple[TowerName, Tensor]]:
    return ("image", pairs.images), ("text", pairs.tokens)


def _cosine(found: Any, expected: Any) -> float:
    return float((found * expected).sum(-1).mean())
