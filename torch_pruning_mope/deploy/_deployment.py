"""``deployment.json``: what a user of exported files has to know, as ``runtime/FORMAT.md`` describes it."""

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from .._io import sha256_of
from .._version import __version__
from ..data import EmojiTokenizer
from ..encoder import EncoderCore
from ..loading import LoadedModel, emoji_image
from ..loading._transformers import ImageProcessor, TextTokenizer
from ..runtime import DEPLOYMENT, Preprocess, Tokenizer
from ._programs import vocabulary

VERSION = 1
_MERGES, _TOKENIZER = "merges.txt.gz", "tokenizer.json"
_PREPROCESSING = ("resize", "resize_to", "size", "interpolation", "mean", "std")
_TEXTS = ("", "an owl", "A red CAR's 12 wheels, isn't it?", "größer &amp; ²½ 猫!! <end_of_text>", "word " * 200)
_CLOSE = 0.1
"""Largest difference of prepared pictures. Processors that resize tensors differ from Pillow by 1 or 2 levels of 255."""
_RESAMPLING = {2: "bilinear", 3: "bicubic"}
"""Names of Pillow's numbers."""


def write_deployment(
    encoder: EncoderCore, loaded: LoadedModel | None, folder: Path, form: str, quantization: Mapping[str, Any] | None
) -> None:
    """Writes the description of the files that are in a folder, and the file of the tokenizer."""
    inputs = encoder.example_inputs
    scale, bias = (
        None if number is None else torch.as_tensor(number).detach().item()
        for number in (encoder.logit_scale, getattr(encoder.model, "logit_bias", None))
    )
    tokenizer = None if loaded is None else _write_tokenizer(loaded, folder)
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
        "preprocessing": None if loaded is None else _describe_preprocessing(loaded),
        "tokenizer": tokenizer,
        "quantization": quantization,
        "versions": {"torch": torch.__version__, "torch_pruning_mope": __version__},
        "files": {
            path.stem if path.suffix in {".onnx", ".pt2", ".pte"} else path.name: {
                "file": path.name,
                "bytes": path.stat().st_size,
                "sha256": sha256_of(path),
            }
            for path in sorted(folder.iterdir())
        },
    }
    (folder / DEPLOYMENT).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def _describe_preprocessing(loaded: LoadedModel) -> dict[str, Any] | None:
    """The object ``preprocessing`` of ``deployment.json``; None if it would not prepare pictures as the model's own does."""
    try:
        described = _preprocessing(loaded)
        picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (93, 140, 3), np.uint8)).resize((280, 186))
        found, expected = Preprocess(described)(picture), loaded.preprocess(picture).numpy()
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
    close = found.shape == expected.shape and float(np.abs(found - expected).max()) <= _CLOSE
    return described if close else None


def _preprocessing(loaded: LoadedModel) -> dict[str, Any]:
    if loaded.preprocess is emoji_image:
        halves = [0.5, 0.5, 0.5]
        found: tuple[Any, ...] = "fit", 64, [64, 64], "bicubic", halves, halves
    elif isinstance(loaded.preprocess, ImageProcessor):
        found = _of_transformers(loaded.preprocess.processor.to_dict())
    else:
        model: Any = loaded.model
        config: dict[str, Any] = model.visual.preprocess_cfg
        size = config["size"]
        sides = [size, size] if isinstance(size, int) else list(size)
        means = list(config["mean"]), list(config["std"])
        found = config["resize_mode"], min(sides), sides, config["interpolation"], *means
    return dict(zip(_PREPROCESSING, found, strict=True))


def _of_transformers(config: dict[str, Any]) -> tuple[Any, ...]:
    """Values of an image processor that resizes, cuts, scales by 1 / 255 and normalises."""
    size, crop = dict(config["size"]), dict(config.get("crop_size") or {})
    resize = "shortest" if "shortest_edge" in size else "squash"
    target = crop if config.get("do_center_crop") else size
    sides = [int(target["height"]), int(target["width"])]
    means = list(config["image_mean"]), list(config["image_std"])
    return resize, int(size.get("shortest_edge") or sides[0]), sides, _RESAMPLING[int(config["resample"])], *means


def _write_tokenizer(loaded: LoadedModel, folder: Path) -> dict[str, Any] | None:
    """The object ``tokenizer``, with its file in the folder; None, and no file, if it would not make the model's own ids."""
    texts = ("", "a red owl") if isinstance(loaded.tokenizer, EmojiTokenizer) else _TEXTS
    try:
        described = _tokenizer(loaded.tokenizer, folder)
        written = Tokenizer(described, folder)
        if all(np.array_equal(written(text), torch.as_tensor(loaded.tokenizer([text])).numpy()) for text in texts):
            return described
    except (AttributeError, KeyError, TypeError, ValueError):
        pass  # a tokenizer of another kind
    for file in (_MERGES, _TOKENIZER):
        (folder / file).unlink(missing_ok=True)
    return None


def _tokenizer(tokenizer: Any, folder: Path) -> dict[str, Any] | None:
    if isinstance(tokenizer, EmojiTokenizer):
        words = [tokenizer.decode([number]) for number in range(1, tokenizer.sot_token_id)]
        ids = {"start": tokenizer.sot_token_id, "end": tokenizer.eot_token_id, "pad": 0}
        return {"kind": "words", "length": tokenizer.context_length, "words": words, **ids}
    if isinstance(tokenizer, TextTokenizer):
        clean = "case" if tokenizer.lower else "none"
        return _fast(tokenizer.tokenizer, tokenizer.context_length, clean, folder)
    from open_clip.tokenizer import HFTokenizer, SimpleTokenizer, default_bpe

    clean = next((name for name, text in _CLEANED.items() if tokenizer.clean_fn("A, b") == text), "")
    if isinstance(tokenizer, SimpleTokenizer) and tokenizer.reduction_fn is None:
        merges = len(tokenizer.bpe_ranks)
        lines = gzip.decompress(Path(default_bpe()).read_bytes()).decode("utf-8").split("\n")[: merges + 1]
        (folder / _MERGES).write_bytes(gzip.compress("\n".join(lines).encode("utf-8"), mtime=0))
        length = int(tokenizer.context_length)
        return {"kind": "bpe", "file": _MERGES, "merges": merges, "length": length, "clean": clean}
    if isinstance(tokenizer, HFTokenizer) and not tokenizer.tokenizer_mode and not tokenizer.strip_sep_token:
        return _fast(tokenizer.tokenizer, int(tokenizer.context_length), clean, folder)
    return None


_CLEANED = {"lower": "a, b", "canonicalize": "a b", "whitespace": "A, b"}
"""Results of open_clip's cleaning functions on "A, b"."""


def _fast(words: Any, length: int, clean: str, folder: Path) -> dict[str, Any]:
    words.backend_tokenizer.save(str(folder / _TOKENIZER))
    return {"kind": "tokenizers", "file": _TOKENIZER, "length": length, "clean": clean, "pad": words.pad_token_id}
