"""Preprocessing and tokenizer of a model, described for runtimes without torch."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..data import EmojiTokenizer
from ..loading import LoadedModel, emoji_image
from ..loading._transformers import ImageProcessor, TextTokenizer
from ..runtime import Preprocess, Tokenizer

_TEXTS = ("", "an owl", "A red CAR's 12 wheels, isn't it?", "größer &amp; ²½ 猫!! <end_of_text>", "word " * 200)
_CLOSE = 0.1
"""Largest difference of prepared pictures. Processors that resize tensors differ from Pillow by 1 or 2 levels of 255."""
_RESAMPLING = {2: "bilinear", 3: "bicubic"}
"""Names of Pillow's numbers."""


def describe_preprocessing(loaded: LoadedModel) -> dict[str, Any] | None:
    """The object ``preprocessing`` of ``deployment.json``; None if it would not prepare pictures as the model's own does."""
    try:
        described = _preprocessing(loaded)
        picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (93, 140, 3), np.uint8)).resize((280, 186))
        found, expected = Preprocess(described)(picture), loaded.preprocess(picture).numpy()
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
    close = found.shape == expected.shape and float(np.abs(found - expected).max()) <= _CLOSE
    return described if close else None


def _preprocessing(loaded: LoadedModel) -> dict[str, Any] | None:
    if loaded.preprocess is emoji_image:
        halves = [0.5, 0.5, 0.5]
        return _described("fit", 64, [64, 64], "bicubic", halves, halves)
    if isinstance(loaded.preprocess, ImageProcessor):
        return _of_transformers(loaded.preprocess.processor.to_dict())
    model: Any = loaded.model
    config: dict[str, Any] = model.visual.preprocess_cfg
    size = config["size"]
    sides = [size, size] if isinstance(size, int) else list(size)
    return _described(
        config["resize_mode"], min(sides), sides, config["interpolation"], list(config["mean"]), list(config["std"])
    )


def _of_transformers(config: dict[str, Any]) -> dict[str, Any]:
    """From the configuration of an image processor that resizes, cuts, scales by 1 / 255 and normalises."""
    size, crop = dict(config["size"]), dict(config.get("crop_size") or {})
    resize = "shortest" if "shortest_edge" in size else "squash"
    target = crop if config.get("do_center_crop") else size
    sides = [int(target["height"]), int(target["width"])]
    means = [list(config[key]) for key in ("image_mean", "image_std")]
    return _described(
        resize, int(size.get("shortest_edge") or sides[0]), sides, _RESAMPLING[int(config["resample"])], *means
    )


def _described(
    resize: str, resize_to: int, size: list[int], interpolation: str, mean: list[float], std: list[float]
) -> dict[str, Any]:
    return {
        "resize": resize,
        "resize_to": resize_to,
        "size": size,
        "interpolation": interpolation,
        "mean": mean,
        "std": std,
    }


def write_tokenizer(loaded: LoadedModel, folder: Path) -> dict[str, Any] | None:
    """The object ``tokenizer``, with its file in the folder; None, and no file, if it would not make the model's own ids."""
    described: dict[str, Any] | None = None
    try:
        described = _tokenizer(loaded.tokenizer, folder)
        again = None if described is None else Tokenizer(described, folder)
        for text in _texts(loaded.tokenizer) if again is not None else ():
            if again is not None and not np.array_equal(again(text), torch.as_tensor(loaded.tokenizer([text])).numpy()):
                raise ValueError("other ids")
    except (AttributeError, KeyError, TypeError, ValueError):
        if described is not None and "file" in described:
            (folder / described["file"]).unlink(missing_ok=True)
        return None
    return described


def _texts(tokenizer: Any) -> tuple[str, ...]:
    return ("", "a red owl") if isinstance(tokenizer, EmojiTokenizer) else _TEXTS


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
        (folder / "merges.txt.gz").write_bytes(gzip.compress("\n".join(lines).encode("utf-8"), mtime=0))
        return {
            "kind": "bpe",
            "file": "merges.txt.gz",
            "merges": merges,
            "length": int(tokenizer.context_length),
            "clean": clean,
        }
    if isinstance(tokenizer, HFTokenizer) and not tokenizer.tokenizer_mode and not tokenizer.strip_sep_token:
        return _fast(tokenizer.tokenizer, int(tokenizer.context_length), clean, folder)
    return None


_CLEANED = {"lower": "a, b", "canonicalize": "a b", "whitespace": "A, b"}
"""Results of open_clip's cleaning functions on "A, b"."""


def _fast(words: Any, length: int, clean: str, folder: Path) -> dict[str, Any]:
    words.backend_tokenizer.save(str(folder / "tokenizer.json"))
    return {"kind": "tokenizers", "file": "tokenizer.json", "length": length, "clean": clean, "pad": words.pad_token_id}
