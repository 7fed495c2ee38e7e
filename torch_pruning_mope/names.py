"""Models by the names that people write for them: one string instead of one loader per library."""

from __future__ import annotations

import difflib
import pickle
import textwrap
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import open_clip
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import LocalEntryNotFoundError
from jaxtyping import Float
from open_clip.tokenizer import HFTokenizer
from PIL import Image, ImageOps
from torch import Tensor, nn

from ._transformers import check_words, load_transformers
from .data import EmojiTokenizer, load_tiny_clip
from .errors import ModelLoadError, MopeError

FORMS = "'tiny', ARCH, ARCH@TAG, ARCH@FILE, hf-hub:ORG/NAME, hf:ORG/NAME, mope:ORG/NAME, local-dir:FOLDER or a folder"
NETWORK = "connect to the network, or pass the cache_dir that holds it"
OPEN_CLIP_CONFIG, TRANSFORMERS_CONFIG = "open_clip_config.json", "config.json"
PREPROCESSING = {"mean": "image_mean", "std": "image_std", "interpolation": "image_interpolation"} | {
    "resize_mode": "image_resize_mode"
}  # from what a pretrained tag calls it to what open_clip's factory calls it


class LoadedModel(NamedTuple):
    """A dual encoder and what turns images and captions into its inputs."""

    model: nn.Module
    preprocess: Callable[[Image.Image], Tensor]
    """From a picture to `[C, H, W]`, as in evaluation: nothing is random."""
    tokenizer: Callable[[str | Sequence[str]], Tensor]
    """From captions to integers `[N, context]`, padded and cut to the model's context."""


def load_model(name: str, *, device: str | torch.device = "cpu", cache_dir: str | Path | None = None) -> LoadedModel:
    """Loads a model in float32 and evaluation mode, with its preprocessing and its tokenizer.

    Pruned models stay in the type that they were saved in.

    | name | what is loaded |
    |---|---|
    | `tiny` | the emoji CLIP that ships with this package |
    | `ViT-B-16-SigLIP@webli` | an open_clip architecture with a pretrained tag |
    | `ViT-B-32@weights.safetensors` | the same with the weights in a file (`.pt`, `.bin`, `.npz` likewise) |
    | `ViT-B-32` | the same with **random weights**, and a warning that says so |
    | `hf-hub:timm/ViT-B-16-SigLIP` | a repository in open_clip's form on the Hugging Face Hub |
    | `hf:google/siglip2-base-patch16-224` | one in the form of transformers, or a folder like it |
    | `local-dir:folder` | a folder in open_clip's form |
    | `mope:me/pruned` | a checkpoint of a pruned model on the Hub, or a folder with one |
    | `folder` | a folder in any of these forms; a checkpoint of a pruned model first, then open_clip's |

    The first form that fits is taken: a folder that is called as an architecture is `./ViT-B-32`. Slashes in an architecture
    are read as dashes (`ViT-B/32`). Code in a checkpoint is never run: what holds more than tensors is refused.

    A state dict does not say how images were prepared nor which GELU it was trained with. A file gets the preprocessing that
    all pretrained tags of its architecture share (open_clip's default, with a warning, if they differ), and the activation of
    the architecture: write `ViT-B-32-quickgelu@FILE` for OpenAI's. Tags trained with QuickGELU get it under either name.

    A folder needs all three parts. transformers' tokenizers return ids alone, which is what CLIP and SigLIP take: padded at
    the end up to `text_config.max_position_embeddings`, and in lower case for SigLIP, as they were trained.

    Args:
        name: Which model.
        device: Where the model goes.
        cache_dir: Where downloads are kept; by default where open_clip and the Hub's client keep them.

    Returns:
        The three parts; `model, preprocess, tokenizer = load_model(...)`.

    Raises:
        ModelLoadError: The name is unknown, its model cannot be had, or the weights do not fit.
        UnsupportedModelError: A transformers model is no dual encoder of images of one size and texts.
    """
    cache = None if cache_dir is None else str(Path(cache_dir).expanduser())
    loaded = _load(name, cache)
    return loaded._replace(model=loaded.model.eval().to(device))


def _load(name: str, cache: str | None) -> LoadedModel:
    if name == "tiny":
        return LoadedModel(load_tiny_clip(), emoji_image, EmojiTokenizer())
    prefix, colon, rest = name.partition(":")
    if colon and prefix in {"hf", "hf-hub", "local-dir", "mope"}:
        if not rest:
            raise ModelLoadError(f"name: something must follow {prefix}:, found nothing; write one of {FORMS}")
        match prefix:
            case "hf":
                return _from_transformers(name, rest, cache)
            case "mope":
                return _from_checkpoint(rest, cache)
            case "hf-hub":
                return _from_hub(name, rest, cache)
            case _:
                return _from_open_clip(name, f"local-dir:{Path(rest).expanduser()}", cache, _folder_mend(rest))
    architecture, at, weights = name.partition("@")
    architecture = architecture.replace("/", "-")
    if architecture in open_clip.list_models():
        return _with_weights(name, architecture, weights, cache) if at else _random(name, architecture, cache)
    folder = Path(name).expanduser()
    if name and folder.is_dir():
        return _from_folder(name, folder, cache)
    raise ModelLoadError(_unknown(name, architecture, weights))


def _unknown(name: str, architecture: str, weights: str) -> str:
    """Returns the words for a name of no known form, with the likeliest mend."""
    path = Path(name).expanduser()
    tagged = open_clip.list_pretrained_models_by_tag(weights)
    similar = _similar(architecture, tagged or [*open_clip.list_models(), "tiny"])
    found = repr(name)
    if name and path.is_file():
        found = f"the file {name!r}, which does not say its architecture"
        mend = f"write ARCH@{name} with the architecture whose weights it holds, one of open_clip.list_models()"
    elif path.is_absolute() or name.startswith((".", "~")):
        mend = "nothing is there, so correct the path"
    elif similar:
        mend = f"did you mean {_either(f'{word}@{weights}' if weights else word for word in similar)}?"
    elif name.count("/") == 1:
        mend = f"write hf:{name} for a repository in transformers' form, hf-hub:{name} for one in open_clip's"
    else:
        mend = "open_clip.list_models() lists the architectures"
    return f"name: must be {FORMS}, found {found}; {mend}"


def _similar(word: str, known: Iterable[str]) -> list[str]:
    """Returns up to three that are spelt alike, or else contain the word; capitals do not matter."""
    spelt = {candidate.lower(): candidate for candidate in known}
    close = difflib.get_close_matches(word.lower(), spelt)
    containing = [candidate for candidate in spelt if len(word) > 2 and word.lower() in candidate]
    return [spelt[found] for found in close or containing[:3]]


def _either(words: Iterable[str]) -> str:
    return " or ".join(repr(word) for word in words)


def _random(name: str, architecture: str, cache: str | None) -> LoadedModel:
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    warnings.warn(
        f"name: {name!r} has no weights, so they are random; write {architecture}@TAG or {architecture}@FILE for trained "
        f"ones. Tags: {', '.join(tags) or 'none'}",
        stacklevel=4,
    )
    options = {"pretrained_text": False, **(_preprocessing(architecture) or {})}
    return _from_open_clip(name, architecture, cache, NETWORK, random=True, **options)


def _with_weights(name: str, architecture: str, weights: str, cache: str | None) -> LoadedModel:
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if open_clip.is_pretrained_cfg(architecture, weights):
        quick = bool(open_clip.get_pretrained_cfg(architecture, weights).get("quick_gelu"))
        return _from_open_clip(name, architecture, cache, NETWORK, pretrained=weights, force_quick_gelu=quick)
    file = Path(weights).expanduser()
    if weights and file.is_file():
        preprocessing = _preprocessing(architecture)
        if preprocessing is None:
            warnings.warn(
                f"name: the pretrained tags of {architecture} differ in how they prepare images, so {name!r} gets "
                f"open_clip's default; if that is wrong, load a folder with the file and an {OPEN_CLIP_CONFIG}",
                stacklevel=4,
            )
        mend = f"pass weights of {architecture}, saved as a state dict, best with safetensors"
        return _from_open_clip(name, architecture, cache, mend, pretrained=str(file), **(preprocessing or {}))
    if similar := _similar(weights, tags):
        mend = f"did you mean {_either(f'{architecture}@{tag}' for tag in similar)}?"
    elif elsewhere := open_clip.list_pretrained_models_by_tag(weights):
        mend = f"write {_either(f'{other}@{weights}' for other in elsewhere)}"
    else:
        mend = f"its tags are {', '.join(tags)}" if tags else "it has no tags: pass a file"
    raise ModelLoadError(
        f"name: after {architecture}@ must come one of its pretrained tags or a file of weights, found {weights!r}; {mend}"
    )


def _preprocessing(architecture: str) -> dict[str, Any] | None:
    """Returns the options that all pretrained tags share; none if there are no tags, and None if they differ."""
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    configs = [open_clip.get_pretrained_cfg(architecture, tag) for tag in tags]
    kinds = [{option: config.get(key) for key, option in PREPROCESSING.items()} for config in configs]
    if any(kind != kinds[0] for kind in kinds):
        return None
    return kinds[0] if kinds else {}


def _from_open_clip(
    name: str, identifier: str, cache: str | None, mend: str, *, random: bool = False, **options: Any
) -> LoadedModel:
    try:
        if random:
            model, _, preprocess = open_clip.create_model_and_transforms(identifier, cache_dir=cache, **options)
        else:  # raises where no weights are found; the other goes on with random ones
            model, preprocess = open_clip.create_model_from_pretrained(identifier, cache_dir=cache, **options)
        tokenizer = open_clip.get_tokenizer(identifier, cache_dir=cache)
        if isinstance(tokenizer, HFTokenizer):
            check_words(tokenizer.tokenizer)
    except MopeError:
        raise
    except Exception as error:
        raise _failure(name, error, mend) from error
    return LoadedModel(model, preprocess, tokenizer)


def _from_hub(name: str, repository: str, cache: str | None) -> LoadedModel:
    try:
        return _from_open_clip(name, name, cache, NETWORK)
    except ModelLoadError as error:
        if _holds(repository, OPEN_CLIP_CONFIG, cache, error) or not _holds(
            repository, TRANSFORMERS_CONFIG, cache, error
        ):
            raise
        raise ModelLoadError(
            f"name: hf-hub: must be followed by a repository in open_clip's form, found {repository} in the form of "
            f"transformers; write hf:{repository}"
        ) from error


def _from_transformers(name: str, source: str, cache: str | None) -> LoadedModel:
    folder = Path(source).expanduser()
    try:
        return LoadedModel(*load_transformers(str(folder) if folder.is_dir() else source, cache))
    except MopeError:
        raise
    except Exception as error:
        if folder.is_dir():
            other = f"local-dir:{source}" if (folder / OPEN_CLIP_CONFIG).is_file() else None
        else:
            other = f"hf-hub:{source}" if _holds(source, OPEN_CLIP_CONFIG, cache, error) else None
        mend = _folder_mend(source) if folder.is_dir() else NETWORK
        raise _failure(name, error, f"it is in open_clip's form: write {other}" if other else mend) from error


def _from_checkpoint(source: str, cache: str | None) -> LoadedModel:
    from .checkpoint import load  # it returns what is defined here: a cycle

    return load(source, cache_dir=cache)


def _from_folder(name: str, folder: Path, cache: str | None) -> LoadedModel:
    from .checkpoint import is_checkpoint

    if is_checkpoint(folder):
        return _from_checkpoint(str(folder), cache)
    if (folder / OPEN_CLIP_CONFIG).is_file():
        return _from_open_clip(name, f"local-dir:{folder}", cache, _folder_mend(name))
    if (folder / TRANSFORMERS_CONFIG).is_file():
        return _from_transformers(name, str(folder), cache)
    files = sorted(path.name for path in folder.iterdir())
    raise ModelLoadError(
        f"name: a folder must hold {OPEN_CLIP_CONFIG} (open_clip) or {TRANSFORMERS_CONFIG} (transformers) beside the "
        f"weights, found {', '.join(files[:8]) or 'nothing'}{' …' if len(files) > 8 else ''} in {name!r}; for weights "
        "alone, write ARCH@FILE"
    )


def _folder_mend(folder: str) -> str:
    return f"complete {folder}: it needs weights, configuration and tokenizer, as the library that wrote it saves them"


def _holds(repository: str, file: str, cache: str | None, error: BaseException) -> bool:
    """Returns whether a repository of the Hub holds a file; the cache's answer will do after a failed connection."""
    offline = any(isinstance(cause, LocalEntryNotFoundError) for cause in _causes(error))
    try:
        hf_hub_download(repository, file, cache_dir=cache, local_files_only=offline)
    except (OSError, ValueError):  # not there, not reachable, not a repository's name
        return False
    return True


def _failure(name: str, error: Exception, mend: str) -> ModelLoadError:
    if isinstance(error, ImportError):
        mend = "pip install torch-pruning-mope[transformers]"
    return ModelLoadError(f"name: {name!r} must be a model that can be loaded, found: {_reason(error)}; {mend}")


def _reason(error: Exception) -> str:
    """Returns in a line what went wrong, and what was at the bottom of it."""
    *_, root = _causes(error)
    if isinstance(root, pickle.UnpicklingError):
        return "a file of more than tensors, or no checkpoint; unpickling it is refused, since that can run code"
    text = textwrap.shorten(str(error) or type(error).__name__, 300, placeholder=" …")
    return text if root is error else f"{text} ({type(root).__name__}: {textwrap.shorten(str(root), 200)})"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yields the error, what it was raised from or while handling, and so on."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def emoji_image(image: Image.Image) -> Float[Tensor, "3 64 64"]:
    """Returns the picture as `emoji_pairs` has it, cut to a square from its middle and resized if need be."""
    square = ImageOps.fit(image.convert("RGB"), (64, 64), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1).contiguous().float() / 127.5 - 1.0
