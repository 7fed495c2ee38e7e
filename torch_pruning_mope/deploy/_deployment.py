"""``deployment.json``: what a user of exported files has to know, as ``runtime/FORMAT.md`` describes it."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .._version import __version__
from ..encoder import EncoderCore
from ..loading import LoadedModel
from ..runtime import DEPLOYMENT
from ._encoders import vocabulary
from ._inputs import describe_preprocessing, write_tokenizer

VERSION = 1


def write_deployment(
    encoder: EncoderCore, loaded: LoadedModel | None, folder: Path, form: str, quantization: Mapping[str, Any] | None
) -> None:
    """Writes the description of the files that are in a folder, and the file of the tokenizer."""
    inputs = encoder.example_inputs
    scale, bias = (
        None if number is None else torch.as_tensor(number).detach().item()
        for number in (encoder.logit_scale, getattr(encoder.model, "logit_bias", None))
    )
    tokenizer = None if loaded is None else write_tokenizer(loaded, folder)
    about = {
        "format": form,
        "format_version": VERSION,
        "embeddings": "not normalised; divide by the norm",
        "image": list(inputs["images"].shape[1:]),
        "context_length": inputs["tokens"].shape[1],
        "vocabulary": vocabulary(encoder),
        "logit_scale": scale,
        "logit_bias": bias,
        "parameters": sum(parameter.numel() for parameter in encoder.model.parameters()),
        "preprocessing": None if loaded is None else describe_preprocessing(loaded),
        "tokenizer": tokenizer,
        "quantization": quantization,
        "versions": {"torch": torch.__version__, "torch_pruning_mope": __version__},
        "files": {
            path.stem if path.suffix in {".onnx", ".pt2", ".pte"} else path.name: {
                "file": path.name,
                "bytes": path.stat().st_size,
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            }
            for path in sorted(folder.iterdir())
        },
    }
    (folder / DEPLOYMENT).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
