"""Labelled images: pairs whose only caption is a class, and whose tokens are its number."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import open_clip
import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes, make_dataset  # type: ignore[import-untyped]

from torch_pruning_mope.data._decode import Unusable, prepare, read_picture
from torch_pruning_mope.data._image_pairs import Described, ImagePairs
from torch_pruning_mope.data._listing import CaptionedImage
from torch_pruning_mope.data._sharded_pairs import ShardedPairs
from torch_pruning_mope.data._shards import Sample, image_of, is_shards, tar_files
from torch_pruning_mope.data._skipped import Problem
from torch_pruning_mope.errors import DataError

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

    Returns:
        The dataset, and the names in the order of the labels.

    Raises:
        DataError: The source is missing or of neither form, or the classes have no names, or too few or many.
    """
    if not isinstance(source, str | Path):
        return _shards(source, None, preprocess, _names(classnames, None), max_skipped)
    folder = Path(source).expanduser()
    if is_shards(str(source)) or tar_files(folder):
        near = None if "://" in str(source) else folder if folder.is_dir() else folder.parent
        return _shards(source, near, preprocess, _names(classnames, near), max_skipped)
    if not folder.is_dir():
        raise DataError(
            f"source: must be a folder with a folder per class, or shards, found {str(source)!r}; correct the path"
        )
    try:
        found, numbers = find_classes(folder)
        files = make_dataset(str(folder), numbers, IMG_EXTENSIONS, allow_empty=True)
    except FileNotFoundError as error:
        raise DataError(
            f"source: a folder must hold a folder of images for each class, found none in {str(source)!r}; pass the folder "
            "above those of the classes"
        ) from error
    names = _names(classnames, folder) or _from_folders(found)
    if len(names) != len(found):
        raise DataError(
            f"classnames: must be one for each of the {len(found)} folders of {str(source)!r}, in alphabetical order of these, "
            f"found {len(names)}; correct them"
        )
    entries = [CaptionedImage(str(Path(path).relative_to(folder)), (str(label),)) for path, label in files]
    dataset = ImagePairs(
        entries, preprocess, _numbers, root=folder, captions="first", max_skipped=max_skipped, name=str(source)
    )
    return LabelledImages(dataset, names)


def _shards(
    source: Any, near: Path | None, preprocess: Any, names: list[str] | None, max_skipped: float
) -> LabelledImages:
    if names is None:
        where = "" if near is None else f" in {str(near)!r} or above"
        raise DataError(
            f"classnames: shards need the names of their classes, found no {CLASSNAMES}{where}; pass classnames, as a list or "
            "a file with one a line"
        )
    return LabelledImages(
        LabelledShards(source, preprocess, _numbers, max_skipped=max_skipped, classes=len(names)), names
    )


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


def _names(given: Sequence[str] | str | Path | None, near: Path | None) -> list[str] | None:
    """The names that were given, or lie near the images; None if there are none."""
    if given is not None and not isinstance(given, str | Path):
        return list(given)
    if given is not None:
        file = Path(given).expanduser()
        if not file.is_file():
            raise DataError(f"classnames: must be names or a file with one a line, found no file {str(given)!r}")
    else:
        places = [] if near is None else [near / CLASSNAMES, near.parent / CLASSNAMES]
        found = [place for place in places if place.is_file()]
        if not found:
            return None
        file = found[0]
    return [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]


def _from_folders(folders: list[str]) -> list[str]:
    if all(WORDNET.fullmatch(name) for name in folders):
        if len(folders) == len(open_clip.IMAGENET_CLASSNAMES):  # in the order of these folders
            return list(open_clip.IMAGENET_CLASSNAMES)
        raise DataError(
            f"classnames: folders called by WordNet's numbers need names, found {len(folders)} (first: {folders[0]}) and no "
            f"{CLASSNAMES}; pass classnames, as a list or a file with one a line"
        )
    return [name.replace("_", " ") for name in folders]
