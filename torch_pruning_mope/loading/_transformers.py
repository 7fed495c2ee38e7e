"""Door to transformers: configurations, models, processors and tokenizers, of which no code is ever run.

The library runs code of a repository or folder if ``trust_remote_code`` is true, and asks on the terminal if it is None, which
is its default. Here it is always False. Attention kernels that a configuration names are replaced by the library's own.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as short
from typing import Any

import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor, nn

from .._io import printable, read_json
from ..errors import ModelLoadError, UnsupportedModelError

ATTENTION = ("sdpa", "eager")
"""Implementations of attention that are part of transformers and torch."""
_OPTIONS: dict[str, Any] = {"trust_remote_code": False}
_INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_MOST_INDEX = 2**24
_FOREIGN = {"auto_map", "quantization_config", "attn_implementation", "experts_implementation", "transformers_version"}
"""Keys of a configuration that load code or files."""


@dataclass(frozen=True)
class ImageProcessor:
    """Turns one picture into one tensor, by a processor of transformers."""

    processor: Any

    def __call__(self, image: Image.Image) -> Tensor:
        """Returns the picture `[C, H, W]`, ready for the model."""
        pixels: Tensor = self.processor(images=image.convert("RGB"), return_tensors="pt")["pixel_values"][0]
        return pixels


@dataclass(frozen=True)
class TextTokenizer:
    """Turns captions into ids of one length, by a tokenizer of transformers."""

    tokenizer: Any
    context_length: int
    lower: bool

    def __call__(self, texts: str | Sequence[str]) -> Int[Tensor, "N context"]:
        """Returns the ids, padded at the end: some tokenizers pad at the start, which no text tower was trained on."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        if not texts:  # the library raises
            return torch.empty(0, self.context_length, dtype=torch.long)
        encoded = self.tokenizer(
            [text.lower() for text in texts] if self.lower else texts,
            padding="max_length",
            padding_side="right",
            truncation=True,
            max_length=self.context_length,
            return_tensors="pt",
        )
        ids: Tensor = encoded["input_ids"]
        return ids


def load_transformers(source: str, cache: str | None) -> tuple[nn.Module, ImageProcessor, TextTokenizer]:
    """Loads a model in float32 with its preprocessing and its tokenizer; small files first, so that a refusal costs little."""
    try:
        import transformers  # optional, and slow to import
    except ImportError as error:
        raise ModelLoadError(
            f"name: {source!r} needs transformers, found it missing; pip install torch-pruning-mope[transformers]"
        ) from error

    config = read_config(source, cache)
    architecture = transformers.MODEL_MAPPING.get(type(config), None)
    if not (hasattr(architecture, "get_image_features") and hasattr(architecture, "get_text_features")):
        raise UnsupportedModelError(
            f"name: must be a dual encoder of images and texts, such as CLIP or SigLIP, found a model of type "
            f"{config.model_type!r} in {source!r}; pass another"
        )
    preprocess = read_processor(source, cache)
    pixels = preprocess(Image.new("RGB", (8, 8)))
    if pixels.ndim != 3:
        raise UnsupportedModelError(
            f"name: images must be [C, H, W] of one size, found {list(pixels.shape)} for a picture in {source!r} (model "
            f"type {config.model_type!r}, of variable resolution); pass a model of fixed resolution"
        )
    tokenizer = text_tokenizer(read_tokenizer(source, cache), config)
    _check_shards(source, cache)
    model, report = transformers.AutoModel.from_pretrained(
        source, config=config, cache_dir=cache, output_loading_info=True, **_OPTIONS
    )
    if missing := sorted(report["missing_keys"]):
        raise ModelLoadError(
            f"name: {source!r} must hold all weights of {type(model).__name__}, found {len(missing)} missing (first: "
            f"{missing[0]}), which would be random; complete the weights"
        )
    return model.float(), preprocess, tokenizer


def read_config(source: str, cache: str | None = None) -> Any:
    """Reads a configuration of transformers."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(source, cache_dir=cache, **_OPTIONS)
    for part in _parts(config):
        if part._attn_implementation not in ATTENTION:
            part._attn_implementation = None  # the library then takes the best of its own
        if getattr(part, "quantization_config", None) is not None:
            raise ModelLoadError(f"name: {source!r} must hold plain weights, found quantised ones; pass the original")
    return config


def read_processor(source: str, cache: str | None = None) -> ImageProcessor:
    """Reads an image processor of transformers."""
    import transformers

    return ImageProcessor(transformers.AutoImageProcessor.from_pretrained(source, cache_dir=cache, **_OPTIONS))


def read_tokenizer(source: str, cache: str | None = None) -> Any:
    """Reads a tokenizer of transformers; raises ModelLoadError if it has no words."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(source, cache_dir=cache, **_OPTIONS)
    check_words(tokenizer)
    return tokenizer


def build_config(architecture: Mapping[str, Any]) -> Any:
    """Builds a configuration from JSON of unknown origin, less what would load code or files."""
    import transformers

    options = {key: _own(value) for key, value in architecture.items() if key not in _FOREIGN and key[:1] != "_"}
    return transformers.AutoConfig.for_model(options.pop("model_type"), **options)


def build_model(config: Any, class_name: str, attention: str) -> nn.Module:
    """Builds a model of random weights."""
    import transformers

    architecture: Any = transformers.MODEL_MAPPING.get(type(config), None)
    if architecture is None or architecture.__name__ != class_name:
        raise ModelLoadError(f"base.class must be the model of {short(config.model_type)}; found {short(class_name)}.")
    return architecture._from_config(config, attn_implementation=attention)  # type: ignore[no-any-return]


def text_tokenizer(words: Any, config: Any) -> TextTokenizer:
    """Tokenizer of a model: padded up to its context, and in lower case for SigLIP."""
    return TextTokenizer(words, config.text_config.max_position_embeddings, config.model_type.startswith("siglip"))


def check_words(tokenizer: Any) -> None:
    """Refuses a tokenizer without words: transformers makes one where it finds no files, without an error."""
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise ModelLoadError(
            f"name: the tokenizer must have a vocabulary, found none in {tokenizer.name_or_path!r}; put its files there, "
            "with AutoTokenizer.from_pretrained(ORIGIN).save_pretrained(FOLDER)"
        )


def _parts(config: Any) -> Iterator[Any]:
    """A configuration and those of its towers."""
    yield config
    for name in getattr(config, "sub_configs", ()):
        if (part := getattr(config, name, None)) is not None:
            yield from _parts(part)


def _own(value: Any) -> Any:
    """JSON less the foreign keys, at every depth."""
    if isinstance(value, dict):
        return {key: _own(inner) for key, inner in value.items() if key not in _FOREIGN and key[:1] != "_"}
    return [_own(inner) for inner in value] if isinstance(value, list) else value


def _check_shards(source: str, cache: str | None) -> None:
    """Refuses an index of weights that names files elsewhere."""
    from transformers.utils.hub import cached_file

    for index in _INDICES:
        path = cached_file(source, index, cache_dir=cache, _raise_exceptions_for_missing_entries=False)
        if path is None:
            continue
        content = read_json(Path(path), _MOST_INDEX)
        shards = content.get("weight_map") if isinstance(content, dict) else None
        names = sorted(set(map(str, shards.values()))) if isinstance(shards, dict) else [repr(shards)]
        bad = [name for name in names if Path(name).name != name or not name.endswith((".safetensors", ".bin"))]
        if bad:
            raise ModelLoadError(
                f"name: {index} must name files of its folder; found {printable(bad[0])!r} in {source!r}"
            )


def saved(part: Any) -> dict[str, bytes]:
    """Files that a configuration, processor or tokenizer saves of itself, by name."""
    with tempfile.TemporaryDirectory() as folder:
        part.save_pretrained(folder)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}
