"""A teacher's embeddings of fixed pairs, computed once."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from .._fingerprint import fingerprint
from .._state import evaluation_mode
from ..data import Pairs
from ..encoder import EncoderCore
from ..errors import WrongModelError
from ._distillation import Encoded


@dataclass(frozen=True, eq=False)
class TeacherEmbeddings:
    """What a teacher makes of some pairs, so that epochs after the first pay for the student alone.

    Attributes:
        images: A row per image.
        texts: A row per caption.
        logit_scale: The teacher's.
    """

    images: Float[Tensor, "I J"]
    texts: Float[Tensor, "N J"]
    logit_scale: float

    @property
    def num_images(self) -> int:
        """How many images there are."""
        return len(self.images)

    @property
    def num_captions(self) -> int:
        """How many captions there are."""
        return len(self.texts)

    def encoded(
        self, rows: Int[Tensor, "B"], captions: Int[Tensor, "C"], device: torch.device | str = "cpu"
    ) -> Encoded:
        """What the teacher makes of some images and captions.

        Args:
            rows: Which images.
            captions: Which captions.
            device: Where it is wanted.

        Returns:
            Embeddings.
        """
        return Encoded(self.images[rows].to(device), self.texts[captions].to(device), self.logit_scale)

    @classmethod
    def of(
        cls, teacher: EncoderCore, pairs: Pairs, *, path: str | Path | None = None, batch_size: int = 128
    ) -> "TeacherEmbeddings":
        """The embeddings of pairs that are always seen in the same view.

        Args:
            teacher: The teacher; left as it is.
            pairs: The pairs.
            path: A file that they are written to, or read from if it holds those of this teacher and these pairs.
            batch_size: Inputs at once.

        Returns:
            The embeddings, on the CPU.

        Raises:
            WrongModelError: If the file holds those of another teacher, or of other pairs.
        """
        of = {"weights": fingerprint(teacher.model), "pairs": pairs.fingerprint()}
        target = None if path is None else Path(path)
        if target is not None and target.exists():
            return cls._read(target, of)
        with torch.inference_mode(), evaluation_mode(teacher.model):
            images = torch.cat([teacher.embed("image", part).cpu() for part in pairs.images.split(batch_size)])
            texts = torch.cat([teacher.embed("text", part).cpu() for part in pairs.tokens.split(batch_size)])
        scale = float(torch.as_tensor(teacher.logit_scale).detach())
        if target is not None:
            tensors = {"images": images.contiguous(), "texts": texts.contiguous()}
            partial = target.with_name(target.name + ".part")
            save_file(tensors, partial, {"of": json.dumps(of), "logit_scale": repr(scale)})
            partial.replace(target)
        return cls(images.clone(), texts.clone(), scale)

    @classmethod
    def _read(cls, path: Path, of: dict[str, str]) -> "TeacherEmbeddings":
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            found = json.loads(about.get("of", "{}"))
            if found != of:
                other = " and ".join(name for name, value in of.items() if found.get(name) != value)
                raise WrongModelError(
                    f"path must be free, or hold embeddings of this teacher and these pairs; {path} is for other {other}. "
                    "Choose another path, or delete the file."
                )
            return cls(file.get_tensor("images"), file.get_tensor("texts"), float(about["logit_scale"]))
