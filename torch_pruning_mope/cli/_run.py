"""A run's folder, as the commands see it."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..checkpoint import load_model
from ..data import Pairs
from ..dual_encoder import DualEncoder
from ..loading import LoadedModel
from ._config import read_config
from ._data import DataSettings, Part

BEGINS = ("score", "pretrain-stage", "finetune-stage")
"""Commands that say which model and which data a run is of."""


class Run:
    """What earlier commands left in a folder.

    Args:
        folder: The folder.

    Raises:
        ValueError: If no command began a run there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        config = read_config(folder) if folder.is_dir() else {}
        begun = next((config[name] for name in BEGINS if name in config), None)
        if begun is None:
            raise ValueError(
                f"RUN must be a folder that one of {', '.join(f'mope {name}' for name in BEGINS)} began; found no such run in "
                f"{folder}. Begin with: mope score {folder} --model tiny"
            )
        self.model_name: str = begun.get("model", "tiny")
        self.device: str = begun.get("device", "cpu")
        self.seed: int = begun.get("seed", 0)
        self._pairs: int = begun.get("pairs") or 1000
        known = {field.name for field in fields(DataSettings)}
        self.data = DataSettings(**{name: value for name, value in begun.items() if name in known})

    def load(self) -> LoadedModel:
        """The model that the run began with, whole."""
        return load_model(self.model_name, device=self.device)

    def calibration(self, loaded: LoadedModel) -> Pairs:
        """The pairs that the run scores on.

        Args:
            loaded: Prepares them.

        Returns:
            The pairs.
        """
        return self.data.pairs(Part.calibration, loaded, self._pairs, self.seed)

    def needs(self, name: str, command: str) -> Path:
        """A file or folder that another command makes.

        Args:
            name: Its name in the run's folder.
            command: The command.

        Returns:
            Its path.

        Raises:
            ValueError: If it is not there.
        """
        path = self.folder / name
        if not path.exists():
            raise ValueError(
                f"RUN must hold {name}; found none in {self.folder}. Make it with: mope {command} {self.folder}"
            )
        return path

    @property
    def latest(self) -> Path:
        """The checkpoint of the smallest model that has come furthest.

        Raises:
            ValueError: If there is none.
        """
        for name in ("distilled", "pruned"):
            if (self.folder / name).exists():
                return self.folder / name
        return self.needs("pruned", "prune")

    def other_data(self, data: str | None, root: str | None, split: str | None) -> DataSettings | None:
        """Data that a command was given in place of the run's; None if it was not.

        Args:
            data: As ``open_pairs`` takes it.
            root: Likewise.
            split: Likewise.

        Returns:
            The settings.

        Raises:
            ValueError: If only ``root`` or ``split`` was given.
        """
        if data is None:
            if root is not None or split is not None:
                raise ValueError("--root and --split go with --data; found one without it. Give --data too.")
            return None
        return DataSettings(data, root, split, self.data.image_key, self.data.caption_key)


def first_rank() -> bool:
    """Whether this process writes; under ``torchrun`` the others leave files alone."""
    return os.environ.get("RANK", "0") == "0"


def wrapped(loaded: LoadedModel) -> DualEncoder:
    """A dual encoder of a loaded model."""
    return DualEncoder(loaded.model)


def budget(name: str, text: str | None) -> Any:
    """A budget as a flag gives it: an amount, or one for each tower.

    Args:
        name: The flag's.
        text: ``"50%"``, or ``"image=50%,text=60%"``.

    Returns:
        What ``make_plan`` takes.

    Raises:
        ValueError: If it is neither.
    """
    if text is None or "=" not in text:
        return _amount(text)
    parts = [part.split("=") for part in text.split(",")]
    if any(len(part) != 2 for part in parts):
        raise ValueError(f"{name} must be an amount such as '50%', or 'image=50%,text=60%'; found {text!r}.")
    return {tower.strip(): _amount(amount) for tower, amount in parts}


def _amount(text: str | None) -> Any:
    """A number where it is one, since texts without a unit are numbers to a shell."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return text


def multiple(text: str) -> Any:
    """``--round-to`` as ``make_plan`` takes it."""
    return int(text) if text.isdecimal() else text
