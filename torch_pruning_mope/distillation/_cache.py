"""Outputs of a teacher on fixed pairs, computed once: embeddings, and hidden states on request.

On disk, each shard is one safetensors file of some images or captions, there whole or not at all, so that an interrupted
computation resumes at the first shard that is missing. Files are mapped into memory, not read whole.
"""

import json
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Int
from safetensors import safe_open
from torch import Tensor

from .._fingerprint import fingerprint
from .._io import parse_json
from .._io._tensors import save_tensors
from .._state import evaluation_mode
from ..data import Pairs
from ..encoder import EncoderCore, TowerName
from ..errors import WrongModelError
from ..scoring import Ranks
from ._loss import Encoded
from ._student import TOWERS, numbered_blocks, watched

TeacherPrecision = Literal["bf16", "fp16"]
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}

Shard = tuple[TowerName, int]


class TeacherCache:
    """Outputs of a teacher on fixed pairs, in memory or on disk; made by :meth:`of`.

    Args:
        about: Whose outputs these are.
        load: Reads one shard: tensors by name.
    """

    def __init__(self, about: Mapping[str, Any], load: Callable[[Shard], Mapping[str, Tensor]]) -> None:
        self.about = dict(about)
        self.hidden: bool = about["hidden"]
        self.num_images: int = about["images"]
        self.num_captions: int = about["captions"]
        self._load = load
        self._shards: dict[Shard, Mapping[str, Tensor]] = {}

    @classmethod
    def of(
        cls,
        teacher: EncoderCore,
        pairs: Pairs,
        *,
        path: str | Path | None = None,
        hidden: bool = False,
        precision: TeacherPrecision | None = None,
        batch_size: int = 128,
        shard_size: int = 1024,
    ) -> "TeacherCache":
        """Runs a teacher on pairs whose images are never augmented; shards on disk are not computed again.

        Under ``torchrun``, all ranks call it together with the same ``path``, and each computes a share of the shards; where
        nodes do not share the folder, each node computes all. Without ``path``, every rank computes all for itself.

        Args:
            teacher: The teacher; left as it is.
            pairs: The pairs, as the teacher takes them.
            path: Folder of the shards; None keeps them in memory.
            hidden: Keep the states that leave each block too, ``tokens * width`` numbers per input and block.
            precision: Autocast of the teacher; None for none.
            batch_size: Inputs run at once.
            shard_size: Images, or captions, of a shard.

        Returns:
            The cache.

        Raises:
            ValueError: If a number is below 1, or hidden states do not have one row per input.
            WrongModelError: If a shard on disk is of another teacher, other pairs or other settings.
        """
        if batch_size < 1 or shard_size < 1:
            raise ValueError(f"batch_size and shard_size must be at least 1; found {batch_size} and {shard_size}.")
        about = {
            "weights": fingerprint(teacher.model),
            "pairs": pairs.fingerprint(),
            "images": pairs.num_images,
            "captions": pairs.num_captions,
            "hidden": hidden,
            "precision": precision,
            "shard_size": shard_size,
            "logit_scale": float(torch.as_tensor(teacher.logit_scale).detach()),
        }
        inputs = {"image": pairs.images.split(shard_size), "text": pairs.tokens.split(shard_size)}
        shards: list[Shard] = [(tower, number) for tower in TOWERS for number in range(len(inputs[tower]))]

        def compute(shard: Shard) -> dict[str, Tensor]:
            tower, number = shard
            half = nullcontext() if precision is None else torch.autocast(teacher.device.type, HALF[precision])
            with torch.no_grad(), evaluation_mode(teacher.model), half:
                return _outputs(teacher, tower, inputs[tower][number], batch_size, hidden=hidden)

        if path is None:
            return cls(about, {shard: compute(shard) for shard in shards}.__getitem__)
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        _fill(folder, shards, compute, about)
        return cls(about, lambda shard: _read(_file(folder, shard)))

    def encoded(
        self, rows: Int[Tensor, "I"], captions: Int[Tensor, "N"], device: torch.device | str = "cpu"
    ) -> Encoded:
        """Outputs for some images and captions, by their places in the pairs."""
        images, texts = self._rows("image", rows, device), self._rows("text", captions, device)
        hidden = {
            tower: {int(name): states for name, states in found.items() if name != "embeddings"}
            for tower, found in (("image", images), ("text", texts))
        }
        scale = self.about["logit_scale"]
        return Encoded(images["embeddings"], texts["embeddings"], scale, None, hidden if self.hidden else None)

    def _rows(self, tower: TowerName, rows: Tensor, device: torch.device | str) -> dict[str, Tensor]:
        """Rows of all that is kept of a tower, in the order asked for."""
        numbers, places = rows // self.about["shard_size"], rows % self.about["shard_size"]
        found: dict[str, Tensor] = {}
        for number in numbers.unique().tolist():
            if (tower, number) not in self._shards:
                self._shards[tower, number] = self._load((tower, number))
            here = numbers == number
            for name, tensor in self._shards[tower, number].items():
                if name not in found:
                    found[name] = tensor.new_empty(len(rows), *tensor.shape[1:])
                found[name][here] = tensor[places[here]]
        return {name: tensor.to(device) for name, tensor in found.items()}


def _fill(
    folder: Path, shards: list[Shard], compute: Callable[[Shard], dict[str, Tensor]], about: Mapping[str, Any]
) -> None:
    """Computes the shards that are missing: each rank its share, then those that a rank does not see."""
    ranks = Ranks()

    def check() -> None:
        for shard in shards:
            _check(_file(folder, shard), about)

    def save(missing: list[Shard]) -> None:
        for shard in missing:
            save_tensors(_file(folder, shard), compute(shard), {"of": json.dumps(about)})

    try:
        ranks.on_all(check)
        for mine in (shards[ranks.rank :: ranks.world], shards):
            ranks.on_all(partial(save, [shard for shard in mine if not _file(folder, shard).exists()]))
    finally:
        ranks.close()


def _file(folder: Path, shard: Shard) -> Path:
    return folder / f"{shard[0]}-{shard[1]:05d}.safetensors"


def _read(file: Path) -> dict[str, Tensor]:
    with safe_open(file, "pt") as shard:
        return {name: shard.get_tensor(name) for name in shard.keys()}  # noqa: SIM118  (no mapping)


def _check(file: Path, about: Mapping[str, Any]) -> None:
    """Raises WrongModelError if there is a file of anything else."""
    if not file.exists():
        return
    with safe_open(file, "pt") as shard:
        found = parse_json((shard.metadata() or {}).get("of", "{}"))
    differing = sorted(name for name, value in about.items() if found.get(name) != value)
    if differing:
        raise WrongModelError(
            f"path must be free, or hold this teacher's outputs on these pairs; {file} is for other {', '.join(differing)}. "
            "Choose another path, or delete the folder."
        )


def _outputs(
    teacher: EncoderCore, tower: TowerName, inputs: Tensor, batch_size: int, *, hidden: bool
) -> dict[str, Tensor]:
    """Embeddings of one tower, and the states that leave its blocks, by their numbers."""
    parts: dict[str, list[Tensor]] = {}
    blocks = numbered_blocks(teacher, (tower,) if hidden else ())
    for batch in inputs.split(batch_size):
        with watched(blocks) as seen:
            parts.setdefault("embeddings", []).append(teacher.embed(tower, batch).cpu())
        for number, states in seen[tower].items():
            if len(states) != len(batch):
                raise ValueError(
                    f"hidden states must have one row per input to be kept; found {list(states.shape)} for {len(batch)} in "
                    f"block {number} of the {tower} tower. Pass hidden=False, or the teacher itself to distill."
                )
            parts.setdefault(str(number), []).append(states.cpu())
    return {name: torch.cat(found).contiguous() for name, found in parts.items()}
