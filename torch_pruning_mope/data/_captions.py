"""Images and captions on disk, in the two forms that retrieval data comes in: open_clip's CSV and COCO's JSON."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from torch_pruning_mope.data._pairs import Pairs


class CaptionedImage(NamedTuple):
    """One image file and everything that is said of it."""

    path: Path
    captions: tuple[str, ...]


class Unusable(NamedTuple):
    """One image that could not be used, and why."""

    path: Path
    reason: str


def read_csv_captions(
    path: str | Path, *, image_key: str = "filepath", caption_key: str = "title", folder: str | Path | None = None
) -> list[CaptionedImage]:
    """Reads a table with a header line, one caption a line, separated by tabs (open_clip's default) or commas.

    Args:
        path: The file.
        image_key: Name of the column of image files, as in open_clip's CsvDataset.
        caption_key: Name of the column of captions.
        folder: What relative image files are relative to; by default the folder of `path`.

    Returns:
        The images in the order of their first line, with their captions; rows of one image are put together.

    Raises:
        ValueError: The header lacks a column, a line lacks a field, or there is no line.
    """
    path = Path(path)
    root = path.parent if folder is None else Path(folder)
    found: dict[Path, list[str]] = {}
    with path.open(newline="", encoding="utf-8-sig") as file:
        header = file.readline()
        file.seek(0)
        rows = csv.DictReader(file, delimiter="\t" if "\t" in header else ",")
        missing = [key for key in (image_key, caption_key) if key not in (rows.fieldnames or [])]
        if missing:
            raise ValueError(
                f"{path}: the first line must name the columns {image_key} and {caption_key}, separated by tabs or "
                f"commas, found {rows.fieldnames}; name the columns of this file"
            )
        for row in rows:
            image, text = row[image_key], row[caption_key]
            if not image or not text:
                raise ValueError(
                    f"{path}: every line must hold an image and a caption, line {rows.line_num} does not; complete or "
                    "delete it"
                )
            found.setdefault(root / image, []).append(text)
    if not found:
        raise ValueError(f"{path}: must list at least one image, found only a header; pass a file with captions")
    return [CaptionedImage(image, tuple(captions)) for image, captions in found.items()]


def read_coco_captions(path: str | Path, folder: str | Path) -> list[CaptionedImage]:
    """Reads a COCO captions file such as `captions_val2017.json`.

    Args:
        path: The file.
        folder: The folder of the images.

    Returns:
        All its images in their order; one without annotations has no captions.

    Raises:
        ValueError: The file is not of this form, or an annotation is of an image that it does not list.
    """
    try:
        content: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
        files = {image["id"]: str(image["file_name"]) for image in content["images"]}
        captions: dict[Any, list[str]] = {identity: [] for identity in files}
        for annotation in content["annotations"]:
            captions[annotation["image_id"]].append(str(annotation["caption"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: must be COCO captions, with images (id, file_name) and annotations (image_id of one of them, "
            f"caption), found otherwise: {error!r}; pass captions_val2017.json or its like"
        ) from error
    return [CaptionedImage(Path(folder) / files[identity], tuple(texts)) for identity, texts in captions.items()]


def load_pairs(
    entries: Iterable[CaptionedImage],
    preprocess: Callable[[Image.Image], Tensor],
    tokenizer: Callable[[Sequence[str]], Tensor],
    *,
    progress: bool = True,
) -> tuple[Pairs, list[Unusable]]:
    """Loads images and tokenises captions; an image that cannot be read is reported, not skipped in silence.

    Args:
        entries: What to load.
        preprocess: From an RGB image to the model's input, such as open_clip's.
        tokenizer: From captions to token ids, such as open_clip's.
        progress: Whether to show a progress bar.

    Returns:
        The pairs, and the images that are not among them.

    Raises:
        ValueError: Fewer than two images are left.
    """
    images: list[Tensor] = []
    captions: list[str] = []
    owners: list[int] = []
    unusable: list[Unusable] = []
    for entry in tqdm(list(entries), "images", unit="image", disable=not progress, delay=2, leave=False):
        if not entry.captions:
            unusable.append(Unusable(entry.path, "it has no caption"))
            continue
        try:
            with Image.open(entry.path) as file:
                picture = file.convert("RGB")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # Pillow raises all of these
            unusable.append(Unusable(entry.path, f"{type(error).__name__}: {error}"))
            continue
        owners += [len(images)] * len(entry.captions)
        images.append(preprocess(picture))
        captions += entry.captions
    if len(images) < 2:
        first = f" (first: {unusable[0].path}: {unusable[0].reason})" if unusable else ""
        raise ValueError(
            f"entries: at least two images with captions must be readable, found {len(images)} and {len(unusable)} "
            f"unusable{first}; check the folder of the images"
        )
    return Pairs(torch.stack(images), tokenizer(captions), torch.tensor(owners)), unusable
