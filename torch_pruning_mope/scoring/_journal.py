"""Measurements so far, on disk: a process that is killed loses the measurement under way and no other.

A folder's files ``NAME.rank0.jsonl``, ``NAME.rank1.jsonl``, … hold a line per measurement, after a line with their key; each
line begins with the CRC-32 of its JSON.
"""

import hashlib
import json
import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .._fingerprint import key_of
from .._io import parse_json
from ..errors import WrongModelError
from ._ranks import Ranks
from ._table import ScoreTable
from ._units import Ablation, Orders


@dataclass(frozen=True)
class Loss:
    """Drop of a metric against the whole model, and each image's part of it, whose mean it is; None if the metric has none."""

    value: float
    shares: Float[Tensor, "I"] | None


def measurement_keys(removed: Iterable[Ablation], ablations: Iterable[Ablation]) -> list[str]:
    """Digests of the measurements of ablations on top of others that hold already, in any order."""
    held = "\n".join(sorted(map(repr, removed)))
    return [hashlib.sha256(f"{held}\n\n{ablation!r}".encode()).hexdigest()[:32] for ablation in ablations]


def kept_key(name: str, value: object, known: tuple[type, ...], path: Path | None) -> str:
    """The key of a metric or rewiring; without a path, a callable need not have one."""
    try:
        return key_of(value, known=known)
    except ValueError as error:
        if path is None:
            return f"{type(value).__qualname__} without a key"
        raise ValueError(f"{name} must be known again where results are kept in `path`: {error}") from error


def complete_table(path: Path, of: dict[str, Any], settings: dict[str, Any]) -> ScoreTable | None:
    """The table at a path, if there is one."""
    if not path.exists():
        return None
    table, asked = ScoreTable.load(path), {name: of[name] for name in ("weights", "pairs", "metric")} | settings
    found = {name: getattr(table, name) for name in ("weights", "pairs", "metric")} | table.settings
    differing = [name for name, value in asked.items() if name not in found or found[name] != value]
    if differing:
        raise ValueError(
            f"path must be free, or hold the table that is asked for; the one at {path} is for other {', '.join(differing)}. "
            "Choose another path, or delete the file."
        )
    return table


class Journal:
    """Measurements of one model on one calibration set, in memory, and on disk if there is a path."""

    def __init__(self, path: Path | None, of: dict[str, Any], ranks: Ranks) -> None:
        self._known: dict[str, Loss] = {}
        self._orders: dict[str, Orders] = {}
        self._path = path
        self._of = of
        self._file: Any = None
        if path is None:
            return
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
        # One reader, so that all ranks agree on what is left to do.
        found = ranks.from_first(lambda: [line for file in self._files() for line in self._read(file)])
        for line in found:
            self._learn(line)
        own = path.with_name(f"{path.name}.rank{ranks.rank}.jsonl")
        self._file = own.open("a", encoding="utf-8")
        self._write({"of": of})

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def __getitem__(self, key: str) -> Loss:
        return self._known[key]

    def add(self, key: str, loss: Loss, ablation: Ablation | None) -> None:
        """Keeps a measurement; the ablation is for people who read the file, None for the whole model."""
        self._known[key] = loss
        line: dict[str, Any] = {"key": key, "of unit": ablation and str(ablation), "value": loss.value}
        if loss.shares is not None:
            line["shares"] = loss.shares.tolist()
        self._write(line)

    def share(self, key: str, loss: Loss) -> None:
        """Keeps a measurement that another rank has written down."""
        self._known[key] = loss

    def orders(self, rewire: str) -> Orders | None:
        """The order of the neurons that these measurements were made with."""
        return self._orders.get(rewire)

    def add_orders(self, rewire: str, orders: Orders) -> None:
        """Keeps the order of the neurons."""
        self._orders[rewire] = orders
        self._write({"rewire": rewire, "orders": [[*key, list(order)] for key, order in orders.items()]})

    def close(self, *, remove: bool) -> None:
        """Closes this rank's file; with ``remove``, deletes those of all ranks."""
        if self._file is None or self._path is None:
            return
        self._file.close()
        self._file = None
        if remove:
            for file in self._files():
                file.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        if self._path is None:
            return []
        name = re.compile(re.escape(self._path.name) + r"\.rank\d+\.jsonl")
        return sorted(file for file in self._path.absolute().parent.iterdir() if name.fullmatch(file.name))

    def _read(self, file: Path) -> list[dict[str, Any]]:
        """The lines that are as they were written, after one that says of what; what is torn or edited is measured again."""
        lines: list[dict[str, Any]] = []
        known = False
        for text in file.read_text(encoding="utf-8", errors="replace").splitlines():
            check, _, content = text.partition(" ")
            if check != _crc(content):
                continue
            line = parse_json(content)
            if "of" not in line and not known:
                continue
            known = True
            if "of" in line and line["of"] != self._of:
                differing = [name for name in self._of | line["of"] if line["of"].get(name) != self._of.get(name)]
                raise WrongModelError(
                    f"path must be free, or hold measurements of the same {', '.join(differing)}; found others in {file}. "
                    "Choose another path, or delete that file."
                )
            lines.append(line)
        return lines

    def _learn(self, line: dict[str, Any]) -> None:
        if "key" in line:
            shares = line.get("shares")
            self._known[line["key"]] = Loss(
                line["value"], None if shares is None else torch.tensor(shares, dtype=torch.double)
            )
        elif "orders" in line:
            self._orders[line["rewire"]] = {(tower, layer): order for tower, layer, order in line["orders"]}

    def _write(self, line: dict[str, Any]) -> None:
        if self._file is not None:
            content = json.dumps(line)
            # A line begins anew, should the one before be torn; a flush suffices against kill -9.
            self._file.write(f"\n{_crc(content)} {content}")
            self._file.flush()


def _crc(content: str) -> str:
    return f"{zlib.crc32(content.encode()):08x}"
