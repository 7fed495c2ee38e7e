"""A folder of exported files as one object."""

from collections.abc import Sequence
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


class ExportedModel:
    """Both encoders of what ``mope.export(..., format="onnx")`` wrote, run by onnxruntime, NumPy and Pillow alone.

    Args:
        folder: The folder, with ``deployment.json``.
        threads: Threads of each encoder; 0 for the runtime's own choice.

    Raises:
        ModelLoadError: If a file is missing, damaged, or of another export.
    """

    def __init__(self, folder: str | Path, *, threads: int = 0) -> None:
        self.folder = Path(folder).expanduser()
        self.about = read_deployment(self.folder)
        self.logit_scale: float | None = self.about.get("logit_scale")
        self.logit_bias: float | None = self.about.get("logit_bias")
        self._threads = threads
        self._sessions = {tower: self._session(tower) for tower in ("image", "text")}
        self._preprocess = None if self.about.get("preprocessing") is None else Preprocess(self.about["preprocessing"])
        described = self.about.get("tokenizer")
        self._tokenizer = None if described is None else Tokenizer(described, self.folder)

    def _session(self, tower: str) -> Any:
        try:
            import onnxruntime
        except ImportError as error:
            raise ModelLoadError(
                "load_exported needs onnxruntime; found it missing. pip install onnxruntime"
            ) from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.log_severity_level = 3
        path = self.folder / self.about["files"][tower]["file"]
        try:
            return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has no public base of its errors
            raise ModelLoadError(
                f"{path.name} must be a model that onnxruntime runs; found: {str(error)[:300]}"
            ) from error

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles load the folder again: sessions can do neither."""
        return partial(type(self), threads=self._threads), (self.folder.absolute(),)

    def encode_image(self, images: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
        """Embeds prepared images ``[N, C, H, W]``; returns ``[N, J]``, not normalised."""
        return self._run("image", images)

    def encode_text(self, tokens: NDArray[np.integer[Any]]) -> NDArray[np.floating[Any]]:
        """Embeds token ids ``[N, T]``; returns ``[N, J]``, not normalised."""
        return self._run("text", tokens)

    def _run(self, tower: str, inputs: NDArray[Any]) -> NDArray[np.floating[Any]]:
        found: NDArray[np.floating[Any]] = self._sessions[tower].run(["embeddings"], {"inputs": inputs})[0]
        return found

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
    if not isinstance(about, dict) or about.get("format") != "onnx" or about.get("format_version") != 1:
        found = {key: about.get(key) for key in ("format", "format_version")} if isinstance(about, dict) else about
        raise ModelLoadError(f"{DEPLOYMENT} must be of an ONNX export of format version 1; found {found!r:.200}.")
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
