"""Dual encoders of types that nobody registered, by the functions they have."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UnsupportedModelError
from ._checks import check_images, check_tokens
from ._opaque import OpaqueTower
from ._pair import embedding_of
from ._registry import FACTORIES, HOW_TO, Towers

MoreParameters = Callable[[], Sequence[tuple[nn.Parameter, int]]]
"""Bare parameters, each with the dimension along the residual width."""
_USUAL_LENGTH = 77
_SIZES = ("image_shape", "image_size", "image_resolution", "input_resolution", "img_size")
_NO_MASK = ("clip", "siglip", "groupvit", "owlvit", "owlv2")
"""Text models that run without a padding mask, as they were trained; of these the first two have kin that do not."""
_MASK = ("chinese_clip", "altclip")


_FUNCTIONS = (("get_image_features", "get_text_features"), ("encode_image", "encode_text"))


def is_known(model: nn.Module) -> bool:
    """Returns whether the model's type has a factory of towers, or the functions of transformers' dual encoders."""
    return FACTORIES.get(type(model)) is not None or _has(model, *_FUNCTIONS[0])


def towers_of(model: nn.Module) -> Towers:
    """The towers of a model whose attention has been swapped."""
    factory = FACTORIES.get(type(model))
    if factory is not None:
        return factory(model)
    if _has(model, *_FUNCTIONS[0]):
        return towers_of_features(model)
    if _has(model, *_FUNCTIONS[1]):
        return _of_encoders(model)
    if _has(model, "get_audio_features") or _has(model, "encode_audio"):
        raise UnsupportedModelError(
            f"model must embed images and texts; found {type(model).__qualname__}, which embeds audio. Audio towers are not "
            "supported."
        )
    others = (name for name in FACTORIES if name.partition(".")[0] != __name__.partition(".")[0])
    known = sorted(f"{name.partition('.')[0]}.{name.rpartition('.')[2]}" for name in others)
    pairs = ", or ".join(" and ".join(pair) for pair in _FUNCTIONS)
    raise UnsupportedModelError(
        f"model must be of a registered type ({', '.join(known)}), or have {pairs}; found {type(model).__qualname__}. Two "
        "encoders are made one by torch_pruning_mope.DualEncoder.of(image_encoder, text_encoder, ...). For a model of your "
        f"own, {HOW_TO}"
    )


def _has(model: Any, *names: str) -> bool:
    return all(callable(getattr(model, name, None)) for name in names)


def towers_of_features(
    model: Any,
    image: Callable[[Tensor], Any] | None = None,
    shape: tuple[int, int, int] | None = None,
    more_parameters: MoreParameters = lambda: (),
) -> Towers:
    """Towers of a model of transformers, or with the same functions."""
    config = model.config
    vision, language = getattr(config, "vision_config", None) or config.image_config, config.text_config
    shape = shape or _shape(vision, int(getattr(vision, "num_channels", 3)), type(model).__qualname__)
    kind, padding = str(getattr(language, "model_type", "")), getattr(language, "pad_token_id", None)
    masks = any(name in kind for name in _MASK) or not any(name in kind for name in _NO_MASK)
    places = getattr(language, "max_position_embeddings", None)
    return _towers(
        model,
        image or _Images(model.get_image_features, model, "pixel_values"),
        _Tokens(model.get_text_features, "input_ids", padding if masks else None),
        shape,
        _USUAL_LENGTH if places is None else int(places) - _reserved(model),
        getattr(language, "vocab_size", None),
        more_parameters,
    )


def _of_encoders(model: Any) -> Towers:
    """A model with the functions of open_clip's and OpenAI's."""
    text, visual = getattr(model, "text", None), getattr(model, "visual", None)
    length = getattr(model, "context_length", None) or getattr(text, "context_length", None) or _USUAL_LENGTH
    shape = _shape(model if _size(model) is not None else visual, 3, type(model).__qualname__)
    vocabulary = getattr(model, "vocab_size", None) or getattr(text, "vocab_size", None)
    return _towers(
        model, _Images(model.encode_image, model), _Tokens(model.encode_text), shape, int(length), vocabulary
    )


class _Images:
    """An image encoder: casts to the model's dtype and picks the embedding."""

    def __init__(self, encode: Callable[..., Any], model: Any, name: str | None = None) -> None:
        self._encode, self._model, self._name = encode, model, name

    def __call__(self, images: Tensor) -> Any:
        images = images.to(next(self._model.parameters()).dtype)
        return embedding_of(self._encode(images) if self._name is None else self._encode(**{self._name: images}))


class _Tokens:
    """A text encoder: masks padding where the model wants it and picks the embedding."""

    def __init__(self, encode: Callable[..., Any], name: str | None = None, padding: int | None = None) -> None:
        self._encode, self._name, self._padding = encode, name, padding

    def __call__(self, tokens: Tensor) -> Any:
        if self._name is None:
            return embedding_of(self._encode(tokens))
        mask = {} if self._padding is None else {"attention_mask": tokens.ne(self._padding).long()}
        return embedding_of(self._encode(**{self._name: tokens}, **mask))


def _size(owner: Any) -> Any:
    return next((size for name in _SIZES if (size := getattr(owner, name, None)) is not None), None)


def _shape(owner: Any, channels: int, kind: str) -> tuple[int, int, int]:
    size = _size(owner)
    if size is None:
        raise UnsupportedModelError(
            f"model must say how large its images are ({', '.join(_SIZES[1:])}); found none of these in {kind}. Set one, or "
            "wrap its encoders with torch_pruning_mope.DualEncoder.of(image_encoder, text_encoder, image_size=...)."
        )
    sizes = tuple(size) if isinstance(size, tuple | list) else (size, size)
    channels, height, width = sizes if len(sizes) == 3 else (channels, *sizes)
    return int(channels), int(height), int(width)


def holds_positions(module: nn.Module) -> bool:
    """Returns whether a layer makes the relative positions that the layers after it use."""
    return any(name.rpartition(".")[2] == "relative_attention_bias" for name, _ in module.named_modules())


class _Example:
    """Makes one input of a model, on its device."""

    def __init__(self, model: Any, shape: Sequence[int], dtype: torch.dtype | None) -> None:
        self._model, self._shape, self._dtype = model, tuple(shape), dtype

    def __call__(self) -> Tensor:
        weight = next(self._model.parameters())
        make = torch.zeros if self._dtype is None else torch.ones
        return make(1, *self._shape, device=weight.device, dtype=self._dtype or weight.dtype)


def _reserved(model: nn.Module) -> int:
    """Places of a table of positions that come before the first token's (RoBERTa's begin after the padding id)."""
    tables = [
        module.padding_idx
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and "position" in name and module.padding_idx is not None
    ]
    return max(tables, default=-1) + 1


def _holder(model: nn.Module, *names: str) -> nn.Module:
    """The part of a model that holds an encoder, if it is where it usually is; the model."""
    return next((part for name in names if isinstance(part := getattr(model, name, None), nn.Module)), model)


def _towers(
    model: nn.Module,
    image: Callable[[Tensor], Any],
    text: Callable[[Tensor], Any],
    shape: tuple[int, int, int],
    places: int,
    vocabulary: int | None,
    more_parameters: MoreParameters = lambda: (),
) -> Towers:
    length = min(places, _USUAL_LENGTH)
    image_root = _holder(model, "vision_model", "image_model", "image_encoder", "visual")
    text_root = _holder(model, "text_model", "text_encoder", "text")
    return Towers(
        image=OpaqueTower(
            image_root,
            image,
            _Example(model, shape, None),
            more_parameters=more_parameters,
            check=partial(check_images, shape=shape),
            within=image_root is model,
        ),
        text=OpaqueTower(
            text_root,
            text,
            _Example(model, (length,), torch.long),
            fixed=holds_positions,
            check=partial(check_tokens, vocabulary=vocabulary, context=places),
            within=text_root is model,
        ),
        encode_image=image,
        encode_text=text,
        image_shape=shape,
        context_length=length,
    )
