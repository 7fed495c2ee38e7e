"""Exported folders as models of torch, for evaluation of the very files."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..runtime import ExportedModel
from ._loaded import LoadedModel


class ExportedEncoder(nn.Module):
    """Both encoders of an exported folder, run by onnxruntime on the CPU; it cannot be wrapped, pruned or trained."""

    def __init__(self, exported: ExportedModel) -> None:
        super().__init__()
        self.exported = exported
        self.anchor = nn.Parameter(torch.zeros(1), requires_grad=False)  # tells the device that results go to

    @property
    def sizes(self) -> dict[str, int]:
        """Parameters of the model that was exported, and bytes of its files."""
        about = self.exported.about
        return {"parameters": about["parameters"], "bytes": sum(entry["bytes"] for entry in about["files"].values())}

    def encode_image(self, images: Tensor) -> Tensor:
        """Embeds images ``[N, C, H, W]``."""
        return self._tensor(self.exported.encode_image(images.cpu().numpy()))

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Embeds token ids ``[N, T]``."""
        return self._tensor(self.exported.encode_text(tokens.cpu().numpy()))

    def _tensor(self, found: Any) -> Tensor:
        return torch.from_numpy(found).to(self.anchor.device)


def load_exported_folder(folder: Path) -> LoadedModel:
    """Returns the encoders of a folder, its preprocessing and its tokenizer."""
    exported = ExportedModel(folder)
    return LoadedModel(ExportedEncoder(exported), _AsTensor(exported, "preprocess"), _AsTensor(exported, "tokenizer"))


@dataclass(frozen=True)
class _AsTensor:
    """A method of an exported model that returns tensors; a class, for the sake of workers that get a copy."""

    exported: ExportedModel
    method: str

    def __call__(self, inputs: Any) -> Tensor:
        return torch.from_numpy(getattr(self.exported, self.method)(inputs))
