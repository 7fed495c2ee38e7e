"""Pictures and captions from files and bytes, or the reason why not."""

import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image
from torch import Tensor

from .._io import OutsideError, open_inside
from .._io._pictures import MOST_PICTURE, open_picture
from ._skipped import Problem, SkipReason

Preprocess = Callable[[Image.Image], Tensor]
"""From a picture to the model's input `[C, H, W]`, as `load_model` returns it."""
Tokenizer = Callable[[Sequence[str]], Tensor]
"""From captions to token ids `[captions, context]`, as `load_model` returns it."""
_SURROGATE = re.compile("[\ud800-\udfff]")


def read_picture(file: io.BufferedIOBase, where: str) -> Image.Image:
    """Returns a picture in RGB, read to its last pixel, or raises Problem."""
    try:
        return open_picture(file)
    except ValueError as error:
        raise Problem("image unreadable", f"{where}: {error}") from error


def read_picture_file(root: Path, name: str, *, follow_links: bool) -> Image.Image:
    """Returns a picture of a dataset in RGB, or raises Problem."""
    where = str(root / name)
    try:
        with open_inside(root, name, follow_links=follow_links, most=MOST_PICTURE) as file:
            return read_picture(file, where)
    except FileNotFoundError as error:
        hint = "; write its folders with / and not with a backslash" if "\\" in name else ""
        raise Problem("file missing", f"{where}: FileNotFoundError{hint}") from error
    except OSError as error:
        outside = isinstance(error, OutsideError)
        reason: SkipReason = "file outside" if outside else "image unreadable"
        raise Problem(reason, f"{where}: {error.strerror}") from error


def prepare(picture: Image.Image, preprocess: Preprocess, where: str) -> Tensor:
    """Returns the model's input; an error here is no fault of the file, so it is raised, with a note that names the file."""
    try:
        return preprocess(picture)
    except Exception as error:
        error.add_note(f"while preparing {where}")
        raise


def as_captions(value: object) -> tuple[str, ...]:
    """Returns the captions in a JSON value, a string or a list of strings, but for blank ones and those without UTF-8."""
    found = value if isinstance(value, list) else [value]
    return tuple(text for text in found if isinstance(text, str) and text.strip() and not _SURROGATE.search(text))
