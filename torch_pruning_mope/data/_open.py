"""Pairs of images and captions, however they are stored."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from ..errors import DataError
from ._decode import Preprocess, Tokenizer
from ._image_pairs import ImagePairs
from ._listing import Listing, read_annotations, read_folder, read_lines, read_table
from ._sharded_pairs import ShardedPairs
from ._shards import SHARD_SUFFIXES, is_shards, tar_files
from ._skipped import Captions

_Form = Literal["table", "JSON lines", "annotations", "folder", "shards"]
SUFFIXES: dict[str, _Form] = {".csv": "table", ".tsv": "table", ".jsonl": "JSON lines", ".json": "annotations"}
OPTIONS: dict[_Form, set[str]] = {
    "table": {"root", "image_key", "caption_key", "separator", "encoding", "follow_links"},
    "JSON lines": {"root", "image_key", "caption_key", "follow_links"},
    "annotations": {"root", "split", "follow_links"},
    "folder": {"image_key", "caption_key", "encoding", "follow_links"},
    "shards": {"caption_key", "shuffle", "samples", "allow_commands", "follow_links"},
}
_READERS: dict[_Form, Callable[..., Listing]] = {
    "table": read_table,
    "JSON lines": read_lines,
    "annotations": read_annotations,
    "folder": read_folder,
}


def open_pairs(
    source: str | Path | Sequence[str | Path],
    preprocess: Preprocess,
    tokenizer: Tokenizer,
    *,
    split: str | None = None,
    root: str | Path | None = None,
    image_key: str | None = None,
    caption_key: str | None = None,
    separator: str | None = None,
    encoding: str | None = None,
    shuffle: int | None = None,
    samples: int | None = None,
    captions: Captions = "random",
    max_skipped: float = 0.1,
    seed: int = 0,
    allow_commands: bool = False,
    follow_links: bool = False,
) -> ImagePairs | ShardedPairs:
    """Opens pairs of images and captions as a dataset of `(image, tokens)`.

    | source | read as |
    |---|---|
    | `pairs.csv`, `pairs.tsv` | a table with a caption a line, in columns `filepath` and `title` as open_clip has it |
    | `metadata.jsonl` | lines of JSON with `file_name` and `text`, a string or a list of them |
    | `captions_val2017.json` | COCO's captions; `root` is the folder of the images |
    | `dataset_coco.json`, `dataset_flickr30k.json` | Karpathy's splits, with `split="test"`, `"train+restval"`, … |
    | a folder of images | captions are the lines of the text file beside an image, and those of `metadata.jsonl` |
    | `{000..127}.tar`, `*.tar`, a folder of them, a URL, a list | WebDataset shards, with the extra `webdataset` |

    Files become `ImagePairs`, an item per image, shards become `ShardedPairs`, a stream. Of images with several captions, an
    item has one; `gather_pairs` takes all.

    Entries that name no image or have no caption are left out, with a warning now; images that cannot be read are found in
    reading, and counted in `skipped`. More than `max_skipped` of either is an error.

    Pictures become 8-bit RGB: turned upright as their EXIF says, 16 bits scaled to 8, transparency composited on white. Those
    of more pixels than `PIL.Image.MAX_IMAGE_PIXELS`, or over 100 times as long as wide, are skipped. Only files under `root`
    are read, and data runs no command, unless you allow it.

    Args:
        source: Data to read.
        preprocess: From a picture to the model's input, as `load_model` returns it.
        tokenizer: From captions to tokens, as `load_model` returns it.
        split: Part of a Karpathy file; None for all.
        root: Folder that image files are relative to; by default that of `source`.
        image_key: Column, or key of JSON lines, of the image files.
        caption_key: That of the captions; in shards, of the caption in a sample's `json` (`caption`).
        separator: Of the columns; by default a tab if the header has one, else a comma.
        encoding: Of tables and text files; UTF-8 by default.
        shuffle: Of shards: see `ShardedPairs`.
        samples: Of shards: see `ShardedPairs`.
        captions: Caption of an item, `random` or `first`.
        max_skipped: Share of entries, images or shards that may be unusable.
        seed: Of all draws.
        allow_commands: Takes URLs of shards that run a command, such as `pipe:`; only for URLs of your own.
        follow_links: Reads files outside of `root` too, by links, absolute names or `..`; else they are skipped and counted.

    Returns:
        The dataset.

    Raises:
        DataError: The source is missing, of no known form, or too much of it is unusable; or an option is given that its
            form does not have.
    """
    form = _form(source)
    options: dict[str, Any] = {
        "split": split,
        "root": root,
        "image_key": image_key,
        "caption_key": caption_key,
        "separator": separator,
        "encoding": encoding,
        "shuffle": shuffle,
        "samples": samples,
        "allow_commands": allow_commands or None,
        "follow_links": follow_links or None,
    }
    given = {key: value for key, value in options.items() if value is not None}
    for key in given.keys() - OPTIONS[form]:
        having = " and ".join(name for name, keys in OPTIONS.items() if key in keys)
        raise DataError(
            f"{key} must be left out for {form}, as an option of {having}; found {given[key]!r} for {source}."
        )
    common: dict[str, Any] = {"captions": captions, "max_skipped": max_skipped, "seed": seed}
    if form == "shards":
        return ShardedPairs(source, preprocess, tokenizer, **given, **common)
    path = Path(str(source)).expanduser()
    of_images = {"root"} if form == "folder" else {"root", "follow_links"}
    listing = _READERS[form](path, **{key: value for key, value in given.items() if key not in of_images})
    folder = path if form == "folder" else path.parent
    return ImagePairs(
        listing.entries,
        preprocess,
        tokenizer,
        root=folder if root is None else Path(root).expanduser(),
        name=str(source),
        problems=listing.problems,
        follow_links=follow_links,
        **common,
    )


def _form(source: str | Path | Sequence[str | Path]) -> _Form:
    if not isinstance(source, str | Path) or is_shards(source):
        return "shards"
    path = Path(source).expanduser()
    if os.path.isdir(path):  # noqa: PTH112  (is_dir and exists raise for names that are too long)
        return "shards" if tar_files(path) else "folder"
    if not os.path.exists(path):  # noqa: PTH110
        raise DataError(f"source must be a file, a folder, a pattern or a URL; found nothing at {str(source)!r}.")
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(
            f"source must be a file of {', '.join(SUFFIXES)} or {', '.join(SHARD_SUFFIXES)}, a folder, a pattern or a URL; "
            f"found {str(source)!r}. Rename it, or write its pairs as one of these."
        )
    return SUFFIXES[path.suffix.lower()]
