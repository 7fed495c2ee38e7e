"""Labelled images: pairs whose only caption is a class, and whose tokens are its number."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import open_clip
import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS  # type: ignore[import-untyped]

from .._io import MOST_TEXT, list_files, open_inside
from .._io._urls import is_url
from ..errors import DataError
from ._decode import Unusable, prepare, read_picture
from ._image_pairs import Described, ImagePairs
from ._listing import NOT_FOLLOWED, CaptionedImage, marked
from ._sharded_pairs import ShardedPairs
from ._shards import image_of, is_shards, tar_files
from ._skipped import Problem
from ._tar import Sample

CLASSNAMES = "classnames.txt"
WORDNET = re.compile(r"n\d{8}")


class LabelledImages(NamedTuple):
    """Images with the number of their class as their tokens, `[1]`, and the names of the classes."""

    dataset: ImagePairs | ShardedPairs
    classnames: list[str]


def open_labelled(
    source: str | Path | Sequence[str | Path],
    preprocess: Callable[[Image.Image], Tensor],
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
    What cannot be read is counted and reported as by `open_pairs`.

    Args:
        source: What to read.
        preprocess: From a picture to the model's input, as `load_model` returns it.
        classnames: Names of the classes, or a file with one a line.
        max_skipped: The share of images or shards that may be unreadable.
        encoding: Of the file of names.
        allow_commands: Of shards: see `ShardedPairs`.
        follow_links: Enters links to folders and reads files outside the folder, else skipped and counted.

    Returns:
        The dataset, and the names in the order of the labels.

    Raises:
        DataError: The source is missing or of neither form, or the classes have no names, or too few or many.
    """
    shards: dict[str, Any] = {
        "max_skipped": max_skipped,
        "allow_commands": allow_commands,
        "follow_links": follow_links,
    }
    if not isinstance(source, str | Path):
        return _shards(source, None, preprocess, _names(classnames, None, encoding), shards)
    folder = Path(source).expanduser()
    if is_shards(source) or tar_files(folder):
        near = None if isinstance(source, str) and is_url(source) else folder if folder.is_dir() else folder.parent
        return _shards(source, near, preprocess, _names(classnames, near, encoding), shards)
    if not os.path.isdir(folder):  # noqa: PTH112  (is_dir raises for names that are too long)
        raise DataError(
            f"source: must be a folder with a folder per class, or shards, found {str(source)!r}; correct the path"
        )
    found = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    if not found:
        raise DataError(
            f"source: a folder must hold a folder of images for each class, found none in {str(source)!r}; pass the folder "
            "above those of the classes"
        )
    files, links = list_files(folder, follow_links=follow_links)
    numbers = {name: str(number) for number, name in enumerate(found)}
    pictures = (path.relative_to(folder) for path in files if path.suffix.lower() in IMG_EXTENSIONS)
    entries = [CaptionedImage(str(path), (numbers[path.parts[0]],)) for path in pictures if len(path.parts) > 1]
    names = _names(classnames, folder, encoding) or _from_folders(found)
    if len(names) != len(found):
        raise DataError(
            f"classnames: must be one for each of the {len(found)} folders of {str(source)!r}, in alphabetical order of these, "
            f"found {len(names)}; correct them"
        )
    dataset = ImagePairs(
        entries,
        preprocess,
        _numbers,
        root=folder,
        captions="first",
        max_skipped=max_skipped,
        name=str(source),
        problems=[Problem("file outside", f"{link}{NOT_FOLLOWED}") for link in links],
        follow_links=follow_links,
    )
    return LabelledImages(dataset, names)


def _shards(
    source: Any, near: Path | None, preprocess: Any, names: list[str] | None, options: dict[str, Any]
) -> LabelledImages:
    if names is None:
        where = "" if near is None else f" in {str(near)!r} or above"
        raise DataError(
            f"classnames: shards need the names of their classes, found no {CLASSNAMES}{where}; pass classnames, as a list or "
            "a file with one a line"
        )
    return LabelledImages(LabelledShards(source, preprocess, _numbers, classes=len(names), **options), names)


class LabelledShards(ShardedPairs):
    """WebDataset shards of images with a class number in `cls`; arguments as of `ShardedPairs`, and how many classes.

    Samples without such a number are skipped.
    """

    def __init__(self, *arguments: Any, classes: int, **options: Any) -> None:
        self.classes = classes
        super().__init__(*arguments, **options)

    def _usable(self, samples: Iterator[Sample]) -> Iterator[Described]:
        for sample in samples:
            where = f"{sample['__url__']}: {sample['__key__']}"
            try:
                label = self._label(sample, where)
                picture = read_picture(io.BytesIO(image_of(sample, where)), where)
            except Unusable as unusable:
                self._skip(*unusable.problem)
                continue
            self._count_read()
            yield Described(prepare(picture, self.preprocess, where), torch.tensor([[label]]))

    def _label(self, sample: Sample, where: str) -> int:
        try:
            label = int(sample["cls"])
        except (KeyError, ValueError) as error:
            raise Unusable(Problem("entry malformed", f"{where}: no whole number in cls")) from error
        if not 0 <= label < self.classes:
            raise Unusable(Problem("entry malformed", f"{where}: class {label} of {self.classes}"))
        return label


def _numbers(texts: Sequence[str]) -> Tensor:
    """The tokenizer of labels."""
    return torch.tensor([[int(text)] for text in texts])


def _names(given: Sequence[str] | str | Path | None, near: Path | None, encoding: str) -> list[str] | None:
    """Returns the names that were given, or lie near the images; None if there are none."""
    if given is not None and not isinstance(given, str | Path):
        return list(given)
    if given is not None:
        places = [Path(given).expanduser()]
    else:
        places = [] if near is None else [near / CLASSNAMES, near.parent / CLASSNAMES]
    for place in places:
        try:
            with open_inside(place.parent, place.name, follow_links=given is not None, most=MOST_TEXT) as file:
                return _lines(file.read(), place, encoding)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise DataError(
                f"classnames: {place} must be a file, found it {error.strerror}; pass classnames"
            ) from error
    if given is not None:
        raise DataError(f"classnames: must be names or a file with one a line, found no file {str(given)!r}")
    return None


def _lines(content: bytes, file: Path, encoding: str) -> list[str]:
    try:
        text = content.decode(marked(encoding))
    except UnicodeError as error:
        raise DataError(f"classnames: {file} must be in {encoding}, found other bytes; pass encoding") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def _from_folders(folders: list[str]) -> list[str]:
    if all(WORDNET.fullmatch(name) for name in folders):
        if len(folders) == len(open_clip.IMAGENET_CLASSNAMES):  # in the order of these folders
            return list(open_clip.IMAGENET_CLASSNAMES)
        raise DataError(
            f"classnames: folders called by WordNet's numbers need names, found {len(folders)} (first: {folders[0]}) and no "
            f"{CLASSNAMES}; pass classnames, as a list or a file with one a line"
        )
    return [name.replace("_", " ") for name in folders]
