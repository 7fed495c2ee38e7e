"""Loads checkpoints, and models by any name: nothing in them is trusted, executed or unpickled, and nothing is written."""

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from torch import nn

from ..encoder import EncoderCore
from ..errors import ModelLoadError, MopeError
from ..loading import LoadedModel, load_named, parse_name
from . import _base
from ._assemble import Wrapper, assemble
from ._base import BASE
from ._checkpoint import CARD, CONFIG, WEIGHTS, Checkpoint, is_checkpoint, read_checkpoint


def fetch(path_or_repo: str | Path, **options: Any) -> Path:
    """Returns the folder of a checkpoint, downloaded if need be."""
    folder = Path(path_or_repo).expanduser()
    if folder.is_dir():
        return folder
    wanted = [CONFIG, WEIGHTS, CARD, f"{BASE}/*"]
    if options.get("cache_dir") is not None:
        options["cache_dir"] = Path(options["cache_dir"]).expanduser()
    try:
        return Path(snapshot_download(str(path_or_repo), allow_patterns=wanted, **options))
    except Exception as error:  # whatever the Hub's client raises for a name, a network, a permission
        raise ModelLoadError(
            f"path_or_repo must be the folder of a checkpoint or a repository of the Hub; found {str(path_or_repo)!r}: "
            f"{type(error).__name__}: {str(error)[:300]}"
        ) from error


def read(folder: Path, wrapper: Wrapper, model: nn.Module | None = None) -> tuple[EncoderCore, Checkpoint]:
    """Reads a checkpoint."""
    try:
        checkpoint = read_checkpoint(folder)
        return assemble(checkpoint, wrapper, model), checkpoint
    except ModelLoadError:
        raise
    except MopeError as error:
        raise ModelLoadError(f"base must be a dual encoder that can be wrapped; found: {error}") from error
    except Exception as error:  # libraries raise nearly anything about a configuration that makes no sense
        raise ModelLoadError(
            f"{CONFIG} must describe a model that the installed libraries build and run; found {type(error).__name__}: "
            f"{str(error)[:300]}"
        ) from error


def load(
    path_or_repo: str | Path,
    *,
    device: str | torch.device = "cpu",
    **download: Any,
) -> LoadedModel:
    """Loads a pruned model with its preprocessing and its tokenizer, as ``open_clip.create_model_and_transforms`` does.

    Neither a network nor the weights of the original are needed. Nothing is executed or written.

    Args:
        path_or_repo: A folder that :meth:`DualEncoder.save_pretrained` wrote, or a repository of the Hub.
        device: Device of the model.
        **download: Options of ``huggingface_hub.snapshot_download``: ``revision``, ``cache_dir``, ``token`` and so on.

    Returns:
        ``model, preprocess, tokenizer``; the model in evaluation mode and of the type that it was saved in.

    Raises:
        ModelLoadError: If there is no such checkpoint, or it is damaged, of another version, or not what it says.
    """
    folder = fetch(path_or_repo, **download)
    encoder, checkpoint = read(folder, EncoderCore)
    model = encoder.model.to(device)
    try:
        return _base.inputs(checkpoint.base.description, folder, model)
    except ModelLoadError:
        raise
    except Exception as error:
        raise ModelLoadError(
            f"base must have a preprocessing and a tokenizer; found {type(error).__name__}: {str(error)[:300]}"
        ) from error


def load_model(name: str, *, device: str | torch.device = "cpu", cache_dir: str | Path | None = None) -> LoadedModel:
    """Loads a model in float32 and evaluation mode, with its preprocessing and its tokenizer.

    Pruned models stay in the type that they were saved in.

    | name | what is loaded |
    |---|---|
    | `tiny` | the emoji CLIP that ships with this package |
    | `ViT-B-16-SigLIP@webli` | an open_clip architecture with a pretrained tag |
    | `ViT-B-32@weights.safetensors` | the same with the weights in a file (`.pt`, `.bin`, `.npz` likewise) |
    | `ViT-B-32` | the same with **random weights**, and a warning |
    | `hf-hub:timm/ViT-B-16-SigLIP` | a repository in open_clip's form on the Hugging Face Hub |
    | `hf:google/siglip2-base-patch16-224` | one in the form of transformers, or a folder like it |
    | `local-dir:folder` | a folder in open_clip's form |
    | `mope:me/pruned` | a checkpoint of a pruned model on the Hub, or a folder with one |
    | `folder` | a folder in any of these forms, or of exported ONNX files; a checkpoint of a pruned model first |

    The first form that fits is taken: a folder that is called as an architecture is `./ViT-B-32`. Slashes in an architecture
    are read as dashes (`ViT-B/32`). Code in a model folder or a checkpoint never runs: a file that holds more than tensors is
    refused.

    A state dict does not say how images were prepared nor which GELU it was trained with. A file gets the preprocessing that
    all pretrained tags of its architecture share (open_clip's default, with a warning, if they differ), and the activation of
    the architecture: write `ViT-B-32-quickgelu@FILE` for OpenAI's. Tags trained with QuickGELU get it under either name.

    A folder needs all three parts. transformers' tokenizers return ids alone, as CLIP and SigLIP take them: padded at
    the end up to `text_config.max_position_embeddings`, and in lower case for SigLIP, as they were trained.

    Args:
        name: Name of the model.
        device: Device of the model.
        cache_dir: Folder of downloads; by default that of open_clip and of the Hub's client.

    Returns:
        The three parts; `model, preprocess, tokenizer = load_model(...)`.

    Raises:
        ModelLoadError: The name is unknown, its model cannot be had, or the weights do not fit.
        UnsupportedModelError: A transformers model is no dual encoder of images of one size and texts.
    """
    parsed = parse_name(name)
    if parsed.form == "mope" or (parsed.form == "folder" and is_checkpoint(Path(parsed.source).expanduser())):
        return load(parsed.source, device=device, cache_dir=cache_dir)
    return load_named(parsed, device=device, cache_dir=cache_dir)
