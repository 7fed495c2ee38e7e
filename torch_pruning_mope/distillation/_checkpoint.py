"""Training checkpoints: tensors and JSON, which take the place of those before at one instant."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._io import located, read_json, write_folder
from .._io._tensors import read_tensors, save_tensors
from ..scoring import Ranks
from ._shard import placed, whole

_STATE, _TENSORS = "training.json", "training.safetensors"
Modules = Mapping[str, nn.Module]
"""The model and, if there is one, its average."""


def save_training(
    folder: Path,
    modules: Modules,
    optimizer: torch.optim.Optimizer,
    key: dict[str, Any],
    history: list[Any],
    ranks: Ranks,
) -> None:
    """Writes a checkpoint on the first rank; every rank must call it."""
    named: dict[str, Any] = {
        f"{kind}.{name}": tensor for kind, module in modules.items() for name, tensor in module.state_dict().items()
    }
    for index, state in optimizer.state_dict()["state"].items():
        named |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in state.items()}
    for rank, states in enumerate(ranks.gather(_random_states())):
        named |= {f"random.{rank}.{name}": state for name, state in states.items()}
    tensors = {}
    for name, tensor in named.items():
        full = whole(tensor.detach())  # one after the other, for the memory
        if ranks.rank == 0:
            tensors[name] = full.cpu().contiguous().clone()

    def write() -> None:
        with write_folder(folder) as new:
            save_tensors(new / _TENSORS, tensors)
            (new / _STATE).write_text(json.dumps({"about": key, "history": history}), encoding="utf-8")

    ranks.from_first(write)


def load_training(
    folder: Path, modules: Modules, optimizer: torch.optim.Optimizer, key: dict[str, Any], ranks: Ranks
) -> list[Any]:
    """Mutates modules, optimizer and random states to the first rank's checkpoint; returns its history, empty without one."""
    read: dict[str, Tensor] = {}

    def header() -> tuple[list[Any], dict[str, Any]]:  # the other ranks need not see the folder
        if not located(folder, _STATE).exists():
            return [], {}
        history, tensors = _read(folder, key)
        read.update(tensors)
        return history, {name: (tensor.shape, tensor.dtype) for name, tensor in read.items()}

    history, kinds = ranks.from_first(header)
    if history:
        tensors = read or {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in kinds.items()}
        if ranks.world > 1:
            ranks.spread(list(tensors.values()), 0)
        _restore(tensors, modules, optimizer, ranks.rank)
    return history


def _read(folder: Path, key: dict[str, Any]) -> tuple[list[Any], dict[str, Tensor]]:
    """History and tensors of a checkpoint of the run that ``key`` describes."""
    try:
        state = read_json(located(folder, _STATE))
        about, history = state["about"], list(state["history"])
        tensors = read_tensors(located(folder, _TENSORS))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"path must hold a checkpoint; the one at {folder} is damaged: {error}. Delete it.") from error
    differing = sorted(name for name in key.keys() | about.keys() if about.get(name) != key.get(name))
    if differing:
        raise ValueError(
            f"path must be free, or of the same run; the one at {folder} has other {', '.join(differing)}. Choose another path."
        )
    return history, tensors


def _restore(tensors: Mapping[str, Tensor], modules: Modules, optimizer: torch.optim.Optimizer, rank: int) -> None:
    for kind, module in modules.items():
        likes = module.state_dict()
        prefix = f"{kind}."
        found = {name.removeprefix(prefix): each for name, each in tensors.items() if name.startswith(prefix)}
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
