"""Quantised files, and their recall on test pairs before and after."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data import Pairs
from ..encoder import EncoderCore, TowerName
from ..errors import ExportError
from ..metrics import Recall, normalised
from ._programs import Runner, onnx_runner
from ._quantize import BOUND, CALIBRATION, Quantization, halve_onnx, quantize_onnx

_BATCH = 64
Runners = Mapping[TowerName, Runner]


@dataclass(frozen=True)
class Measured:
    """Mean R@1 of the float and of the quantised files in percent, and the mean cosine of their embeddings."""

    pairs: int
    recall_float: float
    recall: float
    cosine: dict[TowerName, float]


class Gate:
    """Quantises written ONNX files, unless that costs too much recall on test pairs, which may be None."""

    def __init__(
        self,
        numbers: Quantization,
        pairs: Pairs | Iterable[object] | None,
        test: Pairs | Iterable[object] | None,
        max_drop: float,
        encoder: EncoderCore,
    ) -> None:
        self._pairs = None if pairs is None or numbers == "fp16" else Pairs.coerce(pairs)
        self._test, self._max_drop = None if test is None else Pairs.coerce(test), max_drop
        for name, given in (("pairs", self._pairs), ("test_pairs", self._test)):
            if given is not None:
                _check_shapes(encoder, name, given)
        if self._pairs and self._test and (shared := len(_digests(self._pairs) & _digests(self._test))):
            raise ValueError(
                f"test_pairs must not be calibration pairs; found {shared} images in both. Calibrate on pairs that are not "
                "tested."
            )

    def quantize(self, runners: Runners, folder: Path) -> dict[str, Any]:
        """Mutates the folder; returns the entry of ``deployment.json``."""
        about = self._halved(runners, folder) if self._pairs is None else self._int8(self._pairs, folder)
        if self._test is not None:
            found = measure(runners, {tower: onnx_runner(folder / f"{tower}.onnx") for tower in runners}, self._test)
            if not found.recall_float - found.recall <= self._max_drop:
                raise ExportError(
                    f"quantised files must lose at most {self._max_drop:g} points of mean R@1; found {found.recall_float:.2f} "
                    f"before and {found.recall:.2f} after, on {found.pairs} test images. Nothing was written. Give more "
                    "calibration pairs, a larger max_drop, or export without quantize."
                )
            about["measured"] = {**asdict(found), "max_drop": self._max_drop}
        return about

    @staticmethod
    def _halved(runners: Runners, folder: Path) -> dict[str, Any]:
        for tower in runners:
            halve_onnx(folder / f"{tower}.onnx")
        return {"type": "fp16", "scheme": "weights and activations; inputs and outputs stay float32", "measured": None}

    @staticmethod
    def _int8(pairs: Pairs, folder: Path) -> dict[str, Any]:
        inputs = {"image": pairs.images, "text": pairs.tokens}
        layers = {tower: quantize_onnx(folder / f"{tower}.onnx", own.cpu()) for tower, own in inputs.items()}
        return {
            "type": "int8",
            "scheme": "static, QDQ, weights signed per channel, activations unsigned per tensor",
            "calibration_images": min(CALIBRATION, pairs.num_images),
            "error_bound": BOUND,
            "layers": {tower: asdict(found) for tower, found in layers.items()},
            "measured": None,
        }


def _check_shapes(encoder: EncoderCore, name: str, pairs: Pairs) -> None:
    """Raises ValueError unless pairs are as the exported files take them, which is of one size."""
    example = encoder.example_inputs
    for tower, key, inputs in (("image", "images", pairs.images), ("text", "tokens", pairs.tokens)):
        asked, found = list(example[key].shape[1:]), list(inputs.shape[1:])
        if found != asked:
            raise ValueError(
                f"{name} must hold {key} of shape {asked}, which the exported {tower} encoder takes; found {found}. Make them "
                "with the model's own preprocessing and tokenizer, which pads captions."
            )
        encoder.towers[tower].check_inputs(inputs)  # type: ignore[index]


def measure(before: Runners, after: Runners, test: Pairs) -> Measured:
    """Embeds test pairs with both."""
    floats, quantized = (_embeddings(runners, test) for runners in (before, after))
    recalls = [
        100 * float(Recall((1,)).per_image(found["image"][None], found["text"][None], test.image_index.cpu()).mean())
        for found in (floats, quantized)
    ]
    cosine = {tower: float((floats[tower] * quantized[tower]).sum(-1).mean()) for tower in floats}
    return Measured(test.num_images, recalls[0], recalls[1], cosine)


def _embeddings(runners: Runners, pairs: Pairs) -> dict[TowerName, Tensor]:
    inputs: dict[TowerName, Tensor] = {"image": pairs.images, "text": pairs.tokens}
    return {
        tower: torch.cat([normalised(runners[tower](part), tower).float() for part in own.cpu().split(_BATCH)])
        for tower, own in inputs.items()
    }


def _digests(pairs: Pairs) -> set[int]:
    return {hash(image.contiguous().numpy().tobytes()) for image in pairs.images.cpu()}
