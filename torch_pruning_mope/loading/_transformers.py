"""Dual encoders of the transformers library, with a preprocessing and a tokenizer that are called as open_clip's are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor, nn

from ..errors import ModelLoadError, UnsupportedModelError


@dataclass(frozen=True)
class ImageProcessor:
    """One picture to one tensor, by a processor of transformers."""

    processor: Any

    def __call__(self, image: Image.Image) -> Tensor:
        """Returns the picture `[C, H, W]`, ready for the model."""
        pixels: Tensor = self.processor(images=image.convert("RGB"), return_tensors="pt")["pixel_values"][0]
        return pixels


@dataclass(frozen=True)
class TextTokenizer:
    """Captions to ids of one length, by a tokenizer of transformers."""

    tokenizer: Any
    context_length: int
    lower: bool

    def __call__(self, texts: str | Sequence[str]) -> Int[Tensor, "N context"]:
        """Returns the ids, padded at the end: some tokenizers pad at the start, which no text tower was trained on."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        if not texts:  # which the library cannot do
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
    """Loads a model in float32 with its preprocessing and its tokenizer.

    What is small is loaded first, so that little is downloaded of what is then refused. Code in a repository is not run.
    What transformers raises about what is missing or broken is passed on.

    Args:
        source: A repository of the Hub, or a folder.
        cache: Where downloads are kept; None for the library's own place.

    Returns:
        The three parts, as `LoadedModel` takes them.

    Raises:
        ModelLoadError: transformers is not installed, or weights are missing.
        UnsupportedModelError: The model is no dual encoder of images of one size and texts.
    """
    try:
        import transformers  # optional, and slow to import
    except ImportError as error:
        raise ModelLoadError(
            f"name: {source!r} needs transformers, found it missing; pip install torch-pruning-mope[transformers]"
        ) from error

    config = transformers.AutoConfig.from_pretrained(source, cache_dir=cache)
    architecture = transformers.MODEL_MAPPING.get(type(config), None)
    if not (hasattr(architecture, "get_image_features") and hasattr(architecture, "get_text_features")):
        raise UnsupportedModelError(
            f"name: must be a dual encoder of images and texts, such as CLIP or SigLIP, found a model of type "
            f"{config.model_type!r} in {source!r}; pass another"
        )
    preprocess = ImageProcessor(transformers.AutoImageProcessor.from_pretrained(source, cache_dir=cache))
    pixels = preprocess(Image.new("RGB", (8, 8)))
    if pixels.ndim != 3:
        raise UnsupportedModelError(
            f"name: images must be [C, H, W] of one size, found {list(pixels.shape)} for a picture in {source!r} (model "
            f"type {config.model_type!r}, of variable resolution); pass a model of fixed resolution"
        )
    words = transformers.AutoTokenizer.from_pretrained(source, cache_dir=cache)
    check_words(words)
    tokenizer = text_tokenizer(words, config)

    model, report = transformers.AutoModel.from_pretrained(source, cache_dir=cache, output_loading_info=True)
    if missing := sorted(report["missing_keys"]):
        raise ModelLoadError(
            f"name: {source!r} must hold all weights of {type(model).__name__}, found {len(missing)} missing (first: "
            f"{missing[0]}), which would be random; complete the weights"
        )
    return model.float(), preprocess, tokenizer


def text_tokenizer(words: Any, config: Any) -> TextTokenizer:
    """The tokenizer of a model: padded up to its context, and in lower case for SigLIP.

    Args:
        words: transformers' tokenizer.
        config: The model's configuration.

    Returns:
        The tokenizer.
    """
    return TextTokenizer(words, config.text_config.max_position_embeddings, config.model_type.startswith("siglip"))


def check_words(tokenizer: Any) -> None:
    """Refuses a tokenizer without words: transformers makes one where it finds no files, and says nothing.

    Raises:
        ModelLoadError: All that the tokenizer knows are special tokens.
    """
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise ModelLoadError(
            f"name: the tokenizer must have a vocabulary, found none in {tokenizer.name_or_path!r}; put its files there, "
            "with AutoTokenizer.from_pretrained(ORIGIN).save_pretrained(FOLDER)"
        )
