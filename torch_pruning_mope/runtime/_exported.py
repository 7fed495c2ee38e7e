"""A folder of exported files as one object."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .._io import is_plain, read_json, sha256_of
from ..errors import ModelLoadError
from ._images import Preprocess
from ._tokens import Tokenizer

DEPLOYMENT = "deployment.json"
_MOST_BYTES = 2**22
Runner = Callable[[NDArray[Any]], NDArray[np.floating[Any]]]


def _onnx(path: Path, threads: int) -> Runner:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(["embeddings"], {"inputs": inputs})[0]


def _executorch(path: Path, threads: int) -> Runner:  # noqa: ARG001 (its threads are one pool of the process)
    import torch
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(path).load_method("forward")
    if method is None:
        raise ValueError("no method forward")

    def run(inputs: NDArray[Any]) -> NDArray[np.floating[Any]]:
        rows = torch.from_numpy(np.ascontiguousarray(inputs)).split(1)  # programs take one input
        return np.concatenate([method.execute([row])[0].numpy().copy() for row in rows])

    return run


_RUNTIMES = {"onnx": (_onnx, "onnxruntime"), "executorch": (_executorch, "executorch")}
"""By format: how a file is loaded, and the package that it needs."""


class ExportedModel:
    """Both encoders of an exported folder: of ``onnx``, by onnxruntime, NumPy and Pillow alone; of ``executorch``, by that.

    Args:
        folder: The folder, with ``deployment.json``.
        threads: Threads of each ONNX encoder; 0 for the runtime's own choice.

    Raises:
        ModelLoadError: If a file is missing, damaged, or of another export.
    """

    def __init__(self, folder: str | Path, *, threads: int = 0) -> None:
        self.folder = Path(folder).expanduser()
        self.about = read_deployment(self.folder)
        self.logit_scale: float | None = self.about.get("logit_scale")
        self.logit_bias: float | None = self.about.get("logit_bias")
        self._threads = threads
        self._runners = {tower: self._runner(tower) for tower in ("image", "text")}
        self._preprocess = None if self.about.get("preprocessing") is None else Preprocess(self.about["preprocessing"])
        described = self.about.get("tokenizer")
        self._tokenizer = None if described is None else Tokenizer(described, self.folder)

    def _runner(self, tower: str) -> Runner:
        load, package = _RUNTIMES[self.about["format"]]
        path = self.folder / self.about["files"][tower]["file"]
        try:
            return load(path, self._threads)
        except ImportError as error:
            raise ModelLoadError(f"load_exported needs {package}; found it missing. pip install {package}") from error
        except Exception as error:  # the runtimes have no public base of their errors
            raise ModelLoadError(
                f"{path.name} must be a model that {package} runs; found: {str(error)[:300]}"
            ) from error

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles load the folder again: sessions can do neither."""
        return partial(type(self), threads=self._threads), (self.folder.absolute(),)

    def encode_image(self, images: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
        """Embeds prepared images ``[N, C, H, W]``; returns ``[N, J]``, not normalised."""
        return self._runners["image"](images)

    def encode_text(self, tokens: NDArray[np.integer[Any]]) -> NDArray[np.floating[Any]]:
        """Embeds token ids ``[N, T]``; returns ``[N, J]``, not normalised."""
        return self._runners["text"](tokens)

    def preprocess(self, image: Image.Image) -> NDArray[np.float32]:
        """Turns a picture into ``[C, H, W]``."""
        if self._preprocess is None:
            raise ModelLoadError("preprocessing must be in deployment.json; found none. Prepare images yourself.")
        return self._preprocess(image)

    def tokenizer(self, texts: str | Sequence[str]) -> NDArray[np.int64]:
        """Turns captions into ids."""
        if self._tokenizer is None:
            raise ModelLoadError("tokenizer must be in deployment.json; found none. Make ids yourself.")
        return self._tokenizer(texts)


load_exported = ExportedModel
"""The name of the README's recipe."""


def read_deployment(folder: Path) -> dict[str, Any]:
    """Reads ``deployment.json`` and checks the files that it lists."""
    try:
        about = read_json(folder / DEPLOYMENT, _MOST_BYTES)
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"folder must hold {DEPLOYMENT} of an export; found in {folder}: {error}.") from error
    if not isinstance(about, dict) or about.get("format") not in _RUNTIMES or about.get("format_version") != 1:
        found = {key: about.get(key) for key in ("format", "format_version")} if isinstance(about, dict) else about
        raise ModelLoadError(
            f"{DEPLOYMENT} must be of an export as {' or '.join(_RUNTIMES)}, of format version 1; found {found!r:.200}."
        )
    files = about.get("files")
    if not isinstance(files, dict) or not {"image", "text"} <= set(files):
        raise ModelLoadError(f"{DEPLOYMENT} must list the files image and text; found {files!r:.200}.")
    for entry in files.values():
        _check_file(folder, entry)
    return about


def _check_file(folder: Path, entry: Any) -> None:
    name = entry.get("file") if isinstance(entry, dict) else None
    if not isinstance(name, str) or not is_plain(name):
        raise ModelLoadError(f"{DEPLOYMENT} must list files of its folder; found {entry!r:.200}.")
    try:
        digest = sha256_of(folder / name)
    except OSError as error:
        raise ModelLoadError(f"folder must hold {name}; found none that can be read: {error}.") from error
    if digest != entry.get("sha256"):
        raise ModelLoadError(
            f"{name} must be the file that {DEPLOYMENT} lists; found another: damaged, or of another export."
        )
