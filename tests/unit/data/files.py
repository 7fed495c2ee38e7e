"""Small data sets on disk, in which a picture's colour and a caption's words say which one it is."""

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from torch_pruning_mope import open_pairs

COUNT = 6
CAPTIONS = [[f"{image} {caption}" for caption in range(1 + image % 3)] for image in range(COUNT)]  # 1, 2 or 3 each


def preprocess(image: Image.Image) -> Tensor:
    """The colour of a corner, which says which image it is."""
    assert image.mode == "RGB"
    return torch.tensor(image.getpixel((0, 0))).float()


def tokenizer(texts: Sequence[str]) -> Tensor:
    """Captions here are numbers: of the image, and of the caption."""
    return torch.tensor([[int(word) for word in text.split()] for text in texts])


def picture(number: int, suffix: str = "png") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (number, 7, 9)).save(file, {"jpg": "jpeg"}.get(suffix, suffix))
    return file.getvalue()


def write_images(folder: Path, count: int = COUNT) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"{number}.png").write_bytes(picture(number))


def write(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def write_shard(path: Path, samples: Mapping[str, Mapping[str, bytes]]) -> Path:
    """`{"000": {"png": …, "txt": …}}`, in this order."""
    with tarfile.open(path, "w") as shard:
        for key, files in samples.items():
            for suffix, content in files.items():
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(content)
                shard.addfile(info, io.BytesIO(content))
    return path


def good_sample(number: int) -> dict[str, bytes]:
    return {"png": picture(number), "txt": f"{number} 0".encode()}


def write_shards(folder: Path, shards: int = 4, each: int = 5) -> str:
    for shard in range(shards):
        numbers = range(shard * each, (shard + 1) * each)
        write_shard(folder / f"{shard:02}.tar", {f"{number:03}": good_sample(number) for number in numbers})
    return str(folder / f"{{00..{shards - 1:02}}}.tar")


def opened(source: Any, **options: Any) -> Any:
    return open_pairs(source, preprocess, tokenizer, **options)
