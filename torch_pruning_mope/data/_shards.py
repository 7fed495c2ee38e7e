"""Which shards a pattern stands for, and what a sample of a shard holds."""

from __future__ import annotations

import glob
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from torch_pruning_mope.data._decode import Unusable, as_captions, read_picture
from torch_pruning_mope.data._skipped import Problem
from torch_pruning_mope.errors import DataError

SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")
IMAGE_KEYS = ("jpg", "png", "jpeg", "webp")
SHARD_SUFFIXES = (".tar", ".tar.gz", ".tgz")
Sample = dict[str, Any]


def webdataset() -> Any:
    """Returns the library.

    Raises:
        DataError: It is not installed.
    """
    try:
        import webdataset as library  # optional
    except ImportError as error:
        raise DataError(
            "source: shards need webdataset, found it missing; pip install torch-pruning-mope[webdataset]"
        ) from error
    return library


def is_url(text: str) -> bool:
    """Returns whether this is `scheme:…`, with a scheme of at least two letters."""
    return SCHEME.match(text) is not None


def is_shards(text: str) -> bool:
    """Returns whether this is a URL, several, or a path or pattern of tar files."""
    return is_url(text) or "::" in text or text.endswith(SHARD_SUFFIXES)


def tar_files(folder: Path) -> list[Path]:
    """Returns the tar files of a folder, in alphabetical order; none of what is no folder."""
    return sorted(path for path in folder.iterdir() if path.name.endswith(SHARD_SUFFIXES)) if folder.is_dir() else []


def expand_shards(source: str | Path | Sequence[str | Path]) -> tuple[list[str], list[Problem]]:
    """Expands patterns and folders to shards, and takes out local ones that are missing or of no bytes.

    Args:
        source: Paths, patterns and URLs; several in a string are separated by `::`, as WebDataset has it.

    Returns:
        The shards, and those taken out.

    Raises:
        DataError: A pattern is malformed or fits no file, or WebDataset does not know a URL's scheme.
    """
    library = webdataset()
    found: list[str] = []
    for pattern in [source] if isinstance(source, str | Path) else source:
        try:
            urls = library.shardlists.expand_urls(str(pattern))
        except (AssertionError, ValueError) as error:  # a variable that is not set, an unbalanced brace
            raise DataError(f"source: must be a pattern of shards, found {str(pattern)!r}: {error}; mend it") from error
        for url in urls:
            found += [_known(url, library)] if is_url(url) else _local(url)
    if not found:
        raise DataError(f"source: must be at least one shard, found {source!r}; pass paths, patterns or URLs")
    urls, problems = [], []
    for url in found:
        if not is_url(url) and not Path(url).is_file():
            problems.append(Problem("shard unreadable", f"{url}: no such file"))
        elif not is_url(url) and not Path(url).stat().st_size:
            problems.append(Problem("shard empty", f"{url}: no bytes"))
        else:
            urls.append(url)
    if not urls:
        raise DataError(
            f"source: must be at least one shard with samples, found {len(found)} that are missing or empty (first: "
            f"{problems[0].where}); correct the path"
        )
    return urls, problems


def _local(path: str) -> list[str]:
    path = str(Path(path).expanduser())
    if files := tar_files(Path(path)):
        return [str(file) for file in files]
    if not glob.has_magic(path) or Path(path).exists():
        return [path]
    if not (matches := sorted(glob.glob(path))):  # noqa: PTH207  (Path.glob takes no absolute pattern)
        raise DataError(
            f"source: a pattern must fit shards, found none for {path!r}; correct the folder or the pattern"
        )
    return matches


def _known(url: str, library: Any) -> str:
    scheme = url.partition(":")[0]
    known = {"file", *library.gopen_schemes} - {"__default__"}
    if scheme.lower() not in known:
        raise DataError(
            f"source: WebDataset takes URLs of {', '.join(sorted(known))}, found {url!r}; use pipe: with a command that prints "
            "the shard, such as pipe:aws s3 cp URL -"
        )
    return url


def has_caption_lines(url: str) -> bool:
    """Returns whether a shard's `txt` has a caption a line, as CLIP_benchmark's sets for retrieval have it.

    They say so in a `dataset_type.txt`, in the folder of the shard or in the one above.
    """
    if is_url(url):
        return False
    folder = Path(url).resolve().parent
    files = [place / "dataset_type.txt" for place in (folder, folder.parent)]
    return any(file.is_file() and file.read_text(encoding="utf-8").strip().lower() == "retrieval" for file in files)


def read_sample(
    sample: Sample, caption_key: str, where: str, *, caption_lines: bool = False
) -> tuple[Image.Image, tuple[str, ...]]:
    """Decodes what WebDataset calls a sample: the content of the files of one name, by suffix.

    Args:
        sample: The files.
        caption_key: Where its `json` has its caption, if there is no `txt`.
        where: How a report calls it.
        caption_lines: Whether its `txt` has a caption a line.

    Returns:
        The picture and its captions.

    Raises:
        Unusable: It lacks one, or one cannot be decoded.
    """
    found = image_of(sample, where)
    try:
        text = sample["txt"].decode("utf-8-sig") if "txt" in sample else None
        captions = as_captions(text.splitlines() if text and caption_lines else text)
        if not captions and "json" in sample:
            content = json.loads(sample["json"])
            captions = as_captions(content.get(caption_key)) if isinstance(content, dict) else ()
    except ValueError as error:
        raise Unusable(Problem("entry malformed", f"{where}: {error}")) from error
    if not captions:
        raise Unusable(Problem("caption missing", f"{where}: {_keys(sample)}"))
    return read_picture(io.BytesIO(found), where), captions


def image_of(sample: Sample, where: str) -> bytes:
    """Returns the content of a sample's image file.

    Raises:
        Unusable: It has none.
    """
    found: bytes | None = next((sample[key] for key in IMAGE_KEYS if key in sample), None)
    if found is None:
        raise Unusable(Problem("image missing", f"{where}: {_keys(sample)}"))
    return found


def _keys(sample: Sample) -> str:
    return f"has {', '.join(key for key in sample if not key.startswith('__'))}"
