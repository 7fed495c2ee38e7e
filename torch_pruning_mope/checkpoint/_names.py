"""Loading a model by any name: from a library's format, or from a checkpoint of this package."""

from pathlib import Path

import torch

from ..loading import LoadedModel, load_named, parse_name
from ._checkpoint import is_checkpoint
from ._load import load


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
        return load(parsed.source, device=device, cache_dir=None if cache_dir is None else Path(cache_dir).expanduser())
    return load_named(parsed, device=device, cache_dir=cache_dir)
