"""Labelled images: pairs whose only caption is a class, and whose tokens are its number."""

import io
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import open_clip
import torch
from PIL import Image
from torch import Tensor

from .._io import MOST_TEXT, list_files, open_inside
from .._io._urls import is_url
from ..errors import DataError
from ._decode import Preprocess, read_picture
from ._image_pairs import ImagePairs
from ._listing import IMAGE_SUFFIXES, NOT_ENTERED, CaptionedImage, marked
from ._sharded_pairs import ShardedPairs
from ._shards import Sample, image_of, is_shards, tar_files
from ._skipped import Problem

CLASSNAMES = "classnames.txt"
SUFFIXES = IMAGE_SUFFIXES | {".pgm", ".ppm"}
WORDNET = re.compile(r"n\d{8}")


class LabelledImages(NamedTuple):
    """Images with the number of their class as their tokens, `[1]`, and the names of the classes."""

    dataset: ImagePairs | ShardedPairs
    classnames: list[str]


def open_labelled(
    source: str | Path | Sequence[str | Path],
    preprocess: Preprocess,
    *,
    classnames: Sequence[str] | str | Path | None = None,
    max_skipped: float = 0.1,
    encoding: str = "utf-8",
    allow_commands: bool = False,
    follow_links: bool = False,
) -> LabelledImages:
    """Opens images with a class each, for zero-shot classification.

    | source | read as |
    |---|---|
    | a folder with a folder of images per class | classes in alphabetical order, as torchvision's `ImageFolder` has them |
    | `{000..127}.tar`, `*.tar`, a folder of them, a URL, a list | WebDataset shards with `cls`, as CLIP_benchmark has them |

    Names of the classes are those given, or the lines of a `classnames.txt` in the folder, or (of shards) in the one above.
    Without these, folders give the names, with spaces for underscores, and ImageNet's 1,000 folders those of open_clip.
    Pictures are decoded, and unreadable ones counted, as by `open_pairs`.

    Args:
        source: Data to read.
        preprocess: From a picture to the model's input, as `load_model` returns it.
        classnames: Names of the classes, or a file with one a line.
        max_skipped: Share of images or shards that may be unreadable.
        encoding: Of the file of names.
        allow_commands: Of shards: see `ShardedPairs`.
        follow_links: Enters links to folders and reads files outside the folder; else they are skipped and counted.

    Returns:
        The dataset, and the names in the order of the labels.

    Raises:
        DataError: The source is missing or of neither form, or the classes have no names, or too few or many.
    """
    options: dict[str, Any] = {"max_skipped": max_skipped, "follow_links": follow_links}
    folder = Path(source).expanduser() if isinstance(source, str | Path) else None
    if folder is None or is_shards(source) or tar_files(folder):  # type: ignore[arg-type]
        local = folder is not None and not (isinstance(source, str) and is_url(source))
        near = (folder if os.path.isdir(folder) else folder.parent) if local and folder else None  # noqa: PTH112
        names = _names(classnames, [near, near.parent] if near else [], encoding)
        if names is None:
            where = f" in {str(near)!r} or above" if near else ""
            raise DataError(
                f"classnames must be given for shards, as a list or a file with one a line; found no {CLASSNAMES}{where}."
            )
        shards = LabelledShards(
            source, preprocess, _numbers, classes=len(names), allow_commands=allow_commands, **options
        )
        return LabelledImages(shards, names)
    classes = sorted(e.name for e in os.scandir(folder) if e.is_dir()) if os.path.isdir(folder) else []  # noqa: PTH112
    if not classes:
        raise DataError(
            f"source must be a folder with a folder of images for each class, or shards; found neither at {str(source)!r}."
        )
    names = _names(classnames, [folder], encoding) or _from_folders(classes)
    if len(names) != len(classes):
        raise DataError(
            f"classnames must be one for each of the {len(classes)} folders of {str(source)!r}, in alphabetical order; found "
            f"{len(names)}."
        )
    files, links = list_files(folder, follow_links=follow_links)
    numbers = {name: str(number) for number, name in enumerate(classes)}
    pictures = (path.relative_to(folder) for path in files if path.suffix.lower() in SUFFIXES)
    dataset = ImagePairs(
        [CaptionedImage(str(path), (numbers[path.parts[0]],)) for path in pictures if len(path.parts) > 1],
        preprocess,
        _numbers,
        root=folder,
        captions="first",
        name=str(source),
        problems=[Problem("file outside", f"{link}: {NOT_ENTERED}") for link in links],
        **options,
    )
    return LabelledImages(dataset, names)


class LabelledShards(ShardedPairs):
    """WebDataset shards of images with a class number in `cls`; samples without one are skipped."""

    def __init__(self, *arguments: Any, classes: int, **options: Any) -> None:
        self.classes = classes
        super().__init__(*arguments, **options)

    def _read(self, sample: Sample, where: str) -> tuple[Image.Image, tuple[str, ...]]:
        try:
            label = int(sample["cls"])
        except (KeyError, ValueError) as error:
            raise Problem("entry malformed", f"{where}: no whole number in cls") from error
        if not 0 <= label < self.classes:
            raise Problem("entry malformed", f"{where}: class {label} of {self.classes}")
        return read_picture(io.BytesIO(image_of(sample, where)), where), (str(label),)


def _numbers(texts: Sequence[str]) -> Tensor:
    """Tokenizes labels."""
    return torch.tensor([[int(text)] for text in texts])


def _names(given: Sequence[str] | str | Path | None, folders: list[Path], encoding: str) -> list[str] | None:
    """Returns the names that were given, or of the first folder that has a file of them; None if there are none."""
    if given is not None and not isinstance(given, str | Path):
        return list(given)
    files = [folder / CLASSNAMES for folder in folders] if given is None else [Path(given).expanduser()]
    for file in files:
        try:
            with open_inside(file.parent, file.name, follow_links=given is not None, most=MOST_TEXT) as content:
                text = content.read().decode(marked(encoding))
        except FileNotFoundError:
            continue
        except OSError as error:
            raise DataError(f"classnames must be a file; found {file} {error.strerror}. Pass classnames.") from error
        except UnicodeError as error:
            raise DataError(f"classnames must be in {encoding}; found other bytes in {file}. Pass encoding.") from error
        return [line.strip() for line in text.splitlines() if line.strip()]
    if given is not None:
        raise DataError(f"classnames must be names or a file with one a line; found no file {str(given)!r}.")
    return None


def _from_folders(folders: list[str]) -> list[str]:
    if all(WORDNET.fullmatch(name) for name in folders):
        if len(folders) == len(open_clip.IMAGENET_CLASSNAMES):  # in the order of these folders
            return list(open_clip.IMAGENET_CLASSNAMES)
        raise DataError(
            f"classnames must be given for folders called by WordNet's numbers; found {len(folders)} (first: {folders[0]}) and "
            f"no {CLASSNAMES}. Pass a list, or a file with one a line."
        )
    return [name.replace("_", " ") for name in folders]
