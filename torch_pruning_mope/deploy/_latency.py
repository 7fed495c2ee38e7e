"""Time of a model in the form that is shipped."""

import tempfile
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..cost import median_seconds
from ..data import Pairs
from ..encoder import EncoderCore, TowerName
from ..runtime import ExportedModel
from ._export import export
from ._quantize import Quantization


def shipped_latencies(
    encoder: EncoderCore,
    *,
    batch_size: int = 1,
    quantize: Quantization | None = None,
    pairs: Pairs | Iterable[object] | None = None,
    threads: int = 0,
    repeats: int = 15,
) -> dict[TowerName, float]:
    """Median seconds of each tower's ONNX file in onnxruntime on the CPU, as a ``timer`` for :func:`make_plan`.

    A plan measures about ten models, each exported in 10 to 60 seconds: ``timer=partial(shipped_latencies, quantize="int8",
    pairs=calibration_pairs)``.

    Args:
        encoder: The dual encoder; left as it is.
        batch_size: Inputs at once, of full length.
        quantize: See :func:`export`.
        pairs: Calibration pairs of int8.
        threads: Threads of each encoder; 0 for the runtime's own choice.
        repeats: Runs of which the median is taken.

    Returns:
        Seconds by tower.

    Raises:
        ExportError: If the model cannot be exported.
    """
    inputs = encoder.example_inputs
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "exported"
        export(encoder, folder, quantize=quantize, pairs=pairs)
        shipped = ExportedModel(folder, threads=threads)
        runs: dict[TowerName, tuple[Any, Any]] = {
            "image": (shipped.encode_image, inputs["images"]),
            "text": (shipped.encode_text, inputs["tokens"]),
        }
        found = {}
        for tower, (run, one) in runs.items():
            batch = one.cpu().expand(batch_size, *one.shape[1:]).contiguous().numpy()
            found[tower] = median_seconds(partial(run, batch), torch.device("cpu"), repeats=repeats)
        return found
