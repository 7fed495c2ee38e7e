"""What a teacher makes of fixed pairs, on disk: embeddings, and hidden states where they are asked for.

Shards are safetensors files of a number of images, or captions, each; rows are read as they are needed. A shard is there whole
or not at all, so an interrupted computation goes on with the first that is missing.
"""

import json
import os
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Int
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from .._fingerprint import fingerprint
from .._state import evaluation_mode
from ..data import Pairs
from ..encoder import EncoderCore, TowerName
from ..errors import WrongModelError
from ._distillation import Encoded
from ._student import numbered_blocks, watched

TeacherPrecision = Literal["bf16", "fp16"]
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


class TeacherCache:
    """A teacher's embeddings of fixed pairs, read from disk row by row; made by :meth:`of`.

    Args:
        path: The folder of the shards.
        about: What they are of: what :meth:`of` writes into each.
    """

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        self._path = path
        self._shard_size: int = about["shard_size"]
        self.hidden: bool = about["hidden"]
        self.num_images: int = about["images"]
        self.num_captions: int = about["captions"]
        self.logit_scale: float = about["logit_scale"]
        self._open: dict[tuple[str, int], Any] = {}

    @classmethod
    def of(
        cls,
        teacher: EncoderCore,
        pairs: Pairs,
        *,
        path: str | Path,
        hidden: bool = False,
        dtype: torch.dtype | None = None,
        precision: TeacherPrecision | None = None,
        batch_size: int = 128,
        shard_size: int = 1024,
    ) -> "TeacherCache":
        """What a teacher makes of pairs that are always seen in the same view. Shards that are there are not made again.

        Args:
            teacher: The teacher; left as it is.
            pairs: The pairs, as the teacher takes them.
            path: Folder of the shards.
            hidden: Whether to keep the states that leave each block too, ``tokens * width`` numbers per input and block.
            dtype: What hidden states are kept in; None for as they are.
            precision: What the teacher computes in; None for as its weights are.
            batch_size: Inputs at once.
            shard_size: Images, or captions, of a shard.

        Returns:
            The cache.

        Raises:
            ValueError: If a number is below 1, or hidden states do not have one row per input.
            WrongModelError: If a shard there is of another teacher, other pairs or other settings.
        """
        if batch_size < 1 or shard_size < 1:
            raise ValueError(f"batch_size and shard_size must be at least 1; found {batch_size} and {shard_size}.")
        about = {
            "weights": fingerprint(teacher.model),
            "pairs": pairs.fingerprint(),
            "images": pairs.num_images,
            "captions": pairs.num_captions,
            "hidden": hidden,
            "dtype": str(dtype),
            "precision": precision,
            "shard_size": shard_size,
            "logit_scale": float(torch.as_tensor(teacher.logit_scale).detach()),
        }
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        device = teacher.device.type
        half = nullcontext() if precision is None else torch.autocast(device, HALF[precision])
        with torch.no_grad(), evaluation_mode(teacher.model), half:
            for tower, inputs in (("image", pairs.images), ("text", pairs.tokens)):
                name: TowerName = "image" if tower == "image" else "text"
                for number, rows in enumerate(inputs.split(shard_size)):
                    file = _shard(folder, name, number)
                    if file.exists():
                        _check_shard(file, about)
                        continue
                    _write(file, _states(teacher, name, rows, batch_size, hidden=hidden, dtype=dtype), about)
        return cls(folder, about)

    def encoded(
        self, rows: Int[Tensor, "I"], captions: Int[Tensor, "N"], device: torch.device | str = "cpu"
    ) -> Encoded:
        """What the teacher makes of some images and captions.

        Args:
            rows: Which images.
            captions: Which captions.
            device: Where it is wanted.

        Returns:
            Embeddings, and hidden states if they are kept.
        """
        images, texts = self._read("image", rows, device), self._read("text", captions, device)
        hidden = {
            tower: {int(name): states for name, states in found.items() if name != "embeddings"}
            for tower, found in (("image", images), ("text", texts))
        }
        return Encoded(
            images["embeddings"], texts["embeddings"], self.logit_scale, None, hidden if self.hidden else None
        )

    def _read(self, tower: TowerName, rows: Tensor, device: torch.device | str) -> dict[str, Tensor]:
        """Rows of all that is kept of a tower, in the order asked for."""
        found: dict[str, list[Tensor]] = {}
        for row in rows.tolist():
            number, place = divmod(row, self._shard_size)
            if (tower, number) not in self._open:
                self._open[tower, number] = safe_open(_shard(self._path, tower, number), "pt")
            file = self._open[tower, number]
            for name in file.keys():  # noqa: SIM118  (no mapping)
                found.setdefault(name, []).append(file.get_slice(name)[place : place + 1])
        return {name: torch.cat(parts).to(device) for name, parts in found.items()}


def _shard(folder: Path, tower: str, number: int) -> Path:
    return folder / f"{tower}-{number:05d}.safetensors"


def _states(
    teacher: EncoderCore, tower: TowerName, inputs: Tensor, batch_size: int, *, hidden: bool, dtype: torch.dtype | None
) -> dict[str, Tensor]:
    """Embeddings of one tower, and what leaves its blocks by their numbers."""
    parts: dict[str, list[Tensor]] = {}
    blocks = numbered_blocks(teacher, (tower,) if hidden else ())
    for batch in inputs.split(batch_size):
        with watched(blocks) as seen:
            parts.setdefault("embeddings", []).append(teacher.embed(tower, batch).cpu())
        for number, states in seen[tower].items():
            if len(states) != len(batch):
                raise ValueError(
                    f"hidden states must have one row per input to be kept; found {list(states.shape)} for {len(batch)} in "
                    f"block {number} of the {tower} tower. Pass hidden=False, or the teacher itself to distil."
                )
            parts.setdefault(str(number), []).append(states.to("cpu", dtype))
    return {name: torch.cat(found).contiguous() for name, found in parts.items()}


def _write(file: Path, tensors: dict[str, Tensor], about: Mapping[str, Any]) -> None:
    """Writes a shard, whole or not at all."""
    partial = file.with_name(f"{file.name}.{os.getpid()}.part")  # ranks may write the same one
    try:
        save_file(tensors, partial, {"of": json.dumps(about)})
    except OSError:  # a full disk
        partial.unlink(missing_ok=True)
        raise
    partial.replace(file)


def _check_shard(file: Path, about: Mapping[str, Any]) -> None:
    with safe_open(file, "pt") as shard:
        found = json.loads((shard.metadata() or {}).get("of", "{}"))
    differing = sorted(name for name, value in about.items() if found.get(name) != value)
    if differing:
        raise WrongModelError(
            f"path must be free, or hold what this teacher makes of these pairs; {file} is for other {', '.join(differing)}. "
            "Choose another path, or delete the folder."
        )
