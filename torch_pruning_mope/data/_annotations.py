"""Annotation files of retrieval benchmarks: COCO's captions, and Karpathy's splits of COCO and Flickr30k."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .._io import printable, read_json
from ..errors import DataError
from ._decode import as_captions
from ._listing import Listing

FORMS = "COCO captions (images, annotations) or a Karpathy split (images with split and sentences)"


def read_annotations(path: Path, split: str | None) -> Listing:
    """Returns the images of a JSON file of either form; `split` is `test`, say, or `train+restval`, of a Karpathy file."""
    try:
        content: Any = read_json(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} must be JSON; found otherwise: {error}. Get the file again.") from error
    images = content.get("images") if isinstance(content, dict) else None
    if isinstance(images, list) and isinstance(content.get("annotations"), list):
        if split is not None:
            raise DataError(
                f"split must be left out for COCO, which has a file for each; found {split!r} for {path}. Pass that file, or "
                "divide this one with split_pairs."
            )
        return _coco(images, content["annotations"])
    if isinstance(images, list) and any(isinstance(image, dict) and "sentences" in image for image in images):
        return _karpathy(path, images, split)
    found = f"the keys {list(content)[:10]}" if isinstance(content, dict) else f"a {type(content).__name__}"
    raise DataError(
        f"{path} must be {FORMS}; found {found}. Pass captions_val2017.json, dataset_coco.json or their like."
    )


def _coco(images: list[Any], annotations: list[Any]) -> Listing:
    files: dict[object, str] = {}
    malformed = []
    for number, image in enumerate(images):
        match image:
            case {"id": int() | str() as identity, "file_name": str(name)}:
                files[identity] = name
            case _:
                malformed.append(f"images[{number}]: no id and file_name")
    listing = Listing(files.values())
    for where in malformed:
        listing.refuse("entry malformed", where)
    for number, annotation in enumerate(annotations):
        where = f"annotations[{number}]"
        match annotation:
            case {"image_id": int() | str() as identity, "caption": caption} if identity in files:
                listing.add(files[identity], as_captions(caption), where)
            case {"image_id": int() | str() as identity, "caption": _}:
                listing.refuse("entry malformed", f"{where}: image {identity!r} is not among the images")
            case _:
                listing.refuse("entry malformed", f"{where}: no image_id and caption")
    for name in listing.without_captions:
        listing.refuse("caption missing", name)
    return listing


def _karpathy(path: Path, images: list[Any], split: str | None) -> Listing:
    images = [image if isinstance(image, dict) else {} for image in images]
    splits = {_split(image) for image in images}
    wanted = splits if split is None else set(split.split("+"))
    if unknown := wanted - splits:
        raise DataError(
            f"split must be one of {printable(', '.join(sorted(splits)))} of {path}, or several joined by +; found "
            f"{', '.join(sorted(unknown))}."
        )
    listing = Listing()
    for number, image in enumerate(images):
        if _split(image) not in wanted:
            continue
        name, folder = image.get("filename"), image.get("filepath")  # COCO's has folders, Flickr30k's has none
        if isinstance(name, str) and isinstance(folder, str):
            name = f"{folder}/{name}"
        sentences = image.get("sentences")
        raw = [s.get("raw") for s in sentences if isinstance(s, dict)] if isinstance(sentences, list) else []
        listing.add(name, as_captions(raw), f"images[{number}]")
    return listing


def _split(image: dict[str, Any]) -> str:
    found = image.get("split")
    return found if isinstance(found, str) else "none"
