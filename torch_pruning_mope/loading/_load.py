"""Loading by name from the libraries' own formats."""

from pathlib import Path

import torch

from ..errors import ModelLoadError, MopeError
from ._loaded import NETWORK, LoadedModel, failure, load_exported_folder, load_tiny
from ._names import ModelName, folder_form
from ._transformers import load_transformers


def load_named(
    name: ModelName, *, device: str | torch.device = "cpu", cache_dir: str | Path | None = None
) -> LoadedModel:
    """Loads a model that is no checkpoint of this package; see :func:`torch_pruning_mope.load_model`."""
    cache = None if cache_dir is None else str(Path(cache_dir).expanduser())
    loaded = _load(name, cache)
    return loaded._replace(model=loaded.model.eval().to(device))


def _load(name: ModelName, cache: str | None) -> LoadedModel:
    form: str = name.form
    if form == "tiny":
        return load_tiny()
    if form == "mope":
        raise ModelLoadError(f"name: must be a model of a library, found {name.text!r}; load it with load_model")
    if form == "folder":
        form = folder_form(name.text, Path(name.source).expanduser())
    if form == "exported":
        return load_exported_folder(Path(name.source).expanduser())
    if form == "hf":
        return _transformers(name, cache)
    from . import _open_clip  # slow to import

    if form == "architecture":
        return _open_clip.load_architecture(name, cache)
    if form == "hf-hub":
        return _open_clip.load_parts(name, cache, f"{NETWORK}; write hf:{name.source} if it is in transformers' form")
    return _open_clip.load_parts(name, None, _incomplete(name.source))


def _transformers(name: ModelName, cache: str | None) -> LoadedModel:
    source, folder = name.source, name.folder
    try:
        return LoadedModel(*load_transformers(source if folder is None else str(folder), cache))
    except MopeError:
        raise
    except Exception as error:
        hub = f"{NETWORK}; write hf-hub:{source} if it is in open_clip's form"
        raise failure(name.text, error, hub if folder is None else _incomplete(source)) from error


def _incomplete(folder: str) -> str:
    return f"complete {folder}: it needs weights, configuration and tokenizer, as the library that wrote it saves them"
