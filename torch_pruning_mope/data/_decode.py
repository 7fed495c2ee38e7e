"""Pictures and captions from files and bytes, or the reason why not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path

from PIL import Image
from torch import Tensor

from torch_pruning_mope.data._skipped import Problem

Preprocess = Callable[[Image.Image], Tensor]
"""From a picture to the model's input `[C, H, W]`, as `load_model` returns it."""
Tokenizer = Callable[[Sequence[str]], Tensor]
"""From captions to token ids `[captions, context]`, as `load_model` returns it."""


class Unusable(Exception):  # noqa: N818  (it never leaves the package)
    """A sample that is to be skipped and counted."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.problem = problem


def read_picture(file: str | Path | BytesIO, where: str) -> Image.Image:
    """Reads a picture to its last pixel.

    Args:
        file: A file, or its content.
        where: How a report calls it.

    Returns:
        The picture, in RGB.

    Raises:
        Unusable: There is no such file, or it cannot be decoded.
        MemoryError: It does not fit.
    """
    try:
        with Image.open(file) as picture:
            return picture.convert("RGB")
    except FileNotFoundError as error:
        raise Unusable(Problem("file missing", f"{where}: FileNotFoundError")) from error
    except MemoryError:
        raise
    except Exception as error:  # on broken files, Pillow raises nearly anything
        raise Unusable(Problem("image unreadable", f"{where}: {type(error).__name__}: {error}")) from error


def prepare(picture: Image.Image, preprocess: Preprocess, where: str) -> Tensor:
    """Returns the model's input; what fails here is no fault of the file, so it is raised, with a note of which it was."""
    try:
        return preprocess(picture)
    except Exception as error:
        error.add_note(f"while preparing {where}")
        raise


def as_captions(value: object) -> tuple[str, ...]:
    """Returns the captions in a JSON value, a string or a list of strings; blank ones and other types are none."""
    found = value if isinstance(value, list) else [value]
    return tuple(text for text in found if isinstance(text, str) and text.strip())
