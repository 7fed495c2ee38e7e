"""Training checkpoints: tensors and JSON in a folder per step, each whole or not there."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from .._io import read_json, sync
from .._io._tensors import save_tensors
from ..scoring import Ranks
from ._shard import placed, whole

_STATE, _TENSORS = "training.json", "training.safetensors"


def training_tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer, average: nn.Module | None, ranks: Ranks
) -> dict[str, Tensor]:
    """Tensors of a checkpoint, whole and on the CPU on the first rank, none on the others; every rank must call it."""
    modules = {"model": model} | ({} if average is None else {"average": average})
    named: dict[str, Any] = {
        f"{kind}.{name}": tensor for kind, module in modules.items() for name, tensor in module.state_dict().items()
    }
    for index, state in optimizer.state_dict()["state"].items():
        named |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in state.items()}
    for rank, states in enumerate(ranks.gather(_random_states())):
        named |= {f"random.{rank}.{name}": state for name, state in states.items()}
    found = {}
    for name, tensor in named.items():
        full = whole(tensor.detach())  # one after the other, for the memory
        if ranks.rank == 0:
            found[name] = full.cpu().contiguous().clone()
    return found


def save_training(folder: Path, tensors: dict[str, Tensor], step: int, key: dict[str, Any], history: list[Any]) -> Path:
    """Writes a checkpoint, has the disk hold it, then removes the one before; returns its folder."""
    target = folder / f"step-{step:08d}"
    partial = folder / f"{target.name}.part"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        save_tensors(partial / _TENSORS, tensors)
        state = json.dumps({"step": step, "about": key, "history": history})
        (partial / _STATE).write_text(state, encoding="utf-8")
        sync(partial / _STATE)
        sync(partial)
        shutil.rmtree(target, ignore_errors=True)
        partial.replace(target)
        sync(folder)
    finally:  # of a full disk: the one before stays
        shutil.rmtree(partial, ignore_errors=True)
    for old in folder.glob("step-*"):
        if old != target:
            shutil.rmtree(old, ignore_errors=True)
    return target


def latest_training(folder: Path) -> Path | None:
    """The latest complete checkpoint of a folder, if there is one."""
    found = sorted(path for path in folder.glob("step-*") if not path.name.endswith(".part"))
    return found[-1] if found else None


def load_training(
    folder: Path,
    key: dict[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: nn.Module | None,
    ranks: Ranks,
) -> tuple[Path | None, list[Any]]:
    """Mutates model, optimizer, average and random states to the first rank's latest checkpoint."""
    # The other ranks need not see the folder.
    read: dict[str, Tensor] = {}

    def header() -> tuple[Path, list[Any], dict[str, Any]] | None:
        path = latest_training(folder)
        if path is None:
            return None
        history, tensors = _read(path, key)
        read.update(tensors)
        return path, history, {name: (tensor.shape, tensor.dtype) for name, tensor in read.items()}

    found = ranks.from_first(header)
    if found is None:
        return None, []
    path, history, kinds = found
    tensors = read or {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in kinds.items()}
    if ranks.world > 1:
        ranks.spread(list(tensors.values()), 0)
    _restore(tensors, model, optimizer, average, ranks.rank)
    return path, history


def _read(path: Path, key: dict[str, Any]) -> tuple[list[Any], dict[str, Tensor]]:
    """History and tensors of a checkpoint of the run that ``key`` describes."""
    try:
        state = read_json(path / _STATE)
        about, history = state["about"], list(state["history"])
        tensors: dict[str, Tensor] = load_file(path / _TENSORS)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ValueError(f"path must hold a checkpoint; the one at {path} is damaged: {error}. Delete it.") from error
    differing = sorted(name for name in key.keys() | about.keys() if about.get(name) != key.get(name))
    if differing:
        raise ValueError(
            f"path must be free, or of the same run; the one at {path} has other {', '.join(differing)}. Choose another path."
        )
    return history, tensors


def _restore(
    tensors: dict[str, Tensor],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: nn.Module | None,
    rank: int,
) -> None:
    for kind, module in (("model.", model), ("average.", average)):
        if module is not None:
            found = {name.removeprefix(kind): tensor for name, tensor in tensors.items() if name.startswith(kind)}
            likes = module.state_dict()
            module.load_state_dict({name: placed(tensor, likes.get(name)) for name, tensor in found.items()})
    own = optimizer.state_dict()
    own["state"] = {}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, field = name.split(".", 2)
            like = parameters[int(index)] if tensor.ndim else None  # the number of steps is a number
            own["state"].setdefault(int(index), {})[field] = placed(tensor, like)
    optimizer.load_state_dict(own)
    cpu, cuda = (tensors.get(f"random.{rank}.{name}") for name in ("cpu", "cuda"))
    if cpu is not None:  # (a rank that was not there before keeps its own)
        torch.set_rng_state(cpu)
    if cuda is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(cuda)


def _random_states() -> dict[str, Tensor]:
    own = {"cpu": torch.get_rng_state()}
    return own | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})
