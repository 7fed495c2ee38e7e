"""The folder of a run: its lock, identity, settings and files."""

import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .._io import hold, read_json, write_whole
from ..errors import WrongModelError
from ._settings import read_settings, settings_text

_log = logging.getLogger(__name__)

IDENTITY, SETTINGS, STEPS, TRAINING = "run.json", "config.yaml", "steps.log", "training.jsonl"
_LEFT = re.compile(r"\.[0-9a-f]{8}\.part$")
_WORDS = {"data": "data or division of them", "pairs": "calibration pairs", "calibration": "calibration pairs"}


class RunFolder:
    """The folder of a run; the package's docstring says what is in it. Under ``torchrun``, the first rank alone writes."""

    def __init__(
        self,
        path: str | Path,
        *,
        command: str | None = None,
        settings: Mapping[str, Any] | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = Path(path)
        self.command = command
        self._settings = dict(settings or {})
        self._about = dict(about or {})
        self.writes = os.environ.get("RANK", "0") == "0"

    @contextmanager
    def held(self) -> Iterator["RunFolder"]:
        """Keeps others out of the folder, which is made; see :func:`hold`."""
        if not self.writes:
            yield self
            return
        with hold(self.path, f"mope {self.command}" if self.command else "work"):
            for left in self.path.glob("*.part"):
                if _LEFT.search(left.name):  # of a process that was killed as it wrote
                    left.unlink(missing_ok=True)
            yield self

    def identity(self) -> dict[str, Any] | None:
        """Reads what the run is of."""
        file = self.path / IDENTITY
        if not file.is_file():
            return None
        try:
            return dict(read_json(file))
        except (TypeError, ValueError) as error:
            raise ValueError(f"path must hold a run; {file} is damaged: {error}. Choose another path.") from error

    def check(self, about: Mapping[str, Any]) -> None:
        """Raises unless the folder is free, or of this run."""
        found = self.identity()
        if found is None:
            return
        asked = {**self._about, **about}
        differing = sorted(_WORDS.get(name, name) for name in asked.keys() & found.keys() if found[name] != asked[name])
        if differing:
            raise WrongModelError(
                f"path must be free, or of the same run; the one at {self.path} has other {', '.join(differing)}. Choose "
                "another path, or pass the model, data and arguments of that run."
            )

    def claim(self, about: Mapping[str, Any]) -> None:
        """Begins the run, or goes on with it: writes what it is, and the command's settings."""
        self.check(about)
        if not self.writes:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        known = self.identity() or {}
        if not known.keys() >= {**self._about, **about}.keys():
            self.write(IDENTITY, json.dumps({**known, **self._about, **about}, indent=1) + "\n")
        self.record()

    def record(self) -> None:
        """Writes the command's settings into ``config.yaml``; those of other commands stay."""
        if self.command is not None and self.writes:
            file = self.path / SETTINGS
            self.write(SETTINGS, settings_text(file, self.settings(), self.command, self._settings))

    def settings(self) -> dict[str, dict[str, Any]]:
        """The settings of each command so far."""
        file = self.path / SETTINGS
        return read_settings(file) if file.is_file() else {}

    @property
    def latest(self) -> Path | None:
        """The checkpoint of the smallest model that has come furthest."""
        folders = (self.path / name for name in ("distilled", "pruned"))
        return next((folder for folder in folders if folder.exists()), None)

    def write(self, name: str, content: str) -> None:
        """Writes a file, whole or not at all."""
        if self.writes:
            (self.path / name).parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.path / name, content)

    def note(self, step: str, what: str) -> None:
        """Adds a line to ``steps.log``: a step, and what was done, or found done."""
        _log.info("%s: %s", step, what)
        if self.writes:
            with (self.path / STEPS).open("a", encoding="utf-8") as file:
                file.write(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} {step}: {what}\n")
