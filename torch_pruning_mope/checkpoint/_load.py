"""Reading checkpoints: nothing in them is trusted, executed or unpickled, and nothing is written."""

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from torch import nn

from ..encoder import EncoderCore
from ..errors import ModelLoadError, MopeError
from ..loading import LoadedModel
from . import _base
from ._assemble import Wrapper, assemble
from ._checkpoint import Checkpoint, read_checkpoint
from ._files import BASE, CARD, CONFIG, WEIGHTS


def fetch(path_or_repo: str | Path, **options: Any) -> Path:
    """Returns the folder of a checkpoint, downloaded if need be."""
    folder = Path(path_or_repo).expanduser()
    if folder.is_dir():
        return folder
    wanted = [CONFIG, WEIGHTS, CARD, f"{BASE}/*"]
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
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
) -> LoadedModel:
    """Loads a pruned model with its preprocessing and its tokenizer, as ``open_clip.create_model_and_transforms`` does.

    Neither a network nor the weights of the original are needed. Nothing is executed or written.

    Args:
        path_or_repo: A folder that :meth:`DualEncoder.save_pretrained` wrote, or a repository of the Hub.
        device: Device of the model.
        revision: Branch, tag or commit of the repository.
        cache_dir: Folder of downloads.
        token: Token for repositories that are not public.

    Returns:
        ``model, preprocess, tokenizer``; the model in evaluation mode and of the type that it was saved in.

    Raises:
        ModelLoadError: If there is no such checkpoint, or it is damaged, of another version, or not what it says.
    """
    folder = fetch(path_or_repo, revision=revision, cache_dir=cache_dir, token=token)
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
