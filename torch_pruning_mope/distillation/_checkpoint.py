"""Where training stands, on disk: tensors and JSON, and never half-written."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ._gather import is_alone
from ._shard import placed, whole

_STATE, _TENSORS = "training.json", "training.safetensors"


def training_tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer, average: nn.Module | None = None, *, kept: bool = True
) -> dict[str, Tensor]:
    """What a checkpoint holds; called on every rank, which each give their part.

    Args:
        model: The model.
        optimizer: Its optimizer.
        average: The average of the model's weights, if there is one.
        kept: Whether this rank keeps it.

    Returns:
        Tensors on the CPU, as those of one process; none if they are not kept.
    """
    modules = {"model": model} | ({} if average is None else {"average": average})
    named: dict[str, Any] = {
        f"{kind}.{name}": tensor for kind, module in modules.items() for name, tensor in module.state_dict().items()
    }
    for index, state in optimizer.state_dict()["state"].items():
        named |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in state.items()}
    device = next(model.parameters()).device
    named |= {f"random.{name}": state for name, state in _random_states(device).items()}
    found = {}
    for name, tensor in named.items():
        full = whole(tensor.detach())  # one after the other, for the memory
        if kept:
            found[name] = full.cpu().contiguous().clone()
    return found


def save_training(
    folder: Path, tensors: dict[str, Tensor], step: int, about: dict[str, Any], history: list[Any]
) -> Path:
    """Writes a checkpoint, and removes the one before once it is complete.

    Args:
        folder: Where checkpoints are.
        tensors: What :func:`training_tensors` returned.
        step: Steps done.
        about: What the run is, for a look before it goes on.
        history: What was logged so far.

    Returns:
        The checkpoint's folder.

    Raises:
        OSError: If it cannot be written; the one before is still there.
    """
    target = folder / f"step-{step:08d}"
    partial = folder / f"step-{step:08d}.part"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        save_file(tensors, partial / _TENSORS)
        (partial / _STATE).write_text(json.dumps({"step": step, "about": about, "history": history}), encoding="utf-8")
    except OSError:  # a full disk: what was there before stays
        shutil.rmtree(partial, ignore_errors=True)
        raise
    shutil.rmtree(target, ignore_errors=True)
    partial.replace(target)
    for old in folder.glob("step-*"):
        if old != target:
            shutil.rmtree(old, ignore_errors=True)
    return target


def latest_training(folder: Path) -> Path | None:
    """The latest complete checkpoint of a folder, if there is one."""
    found = sorted(path for path in folder.glob("step-*") if not path.name.endswith(".part"))
    return found[-1] if found else None


def load_training(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    about: dict[str, Any],
    average: nn.Module | None = None,
) -> tuple[int, list[Any]]:
    """Mutates the model, its optimizer, its average and the random states: as they were.

    Args:
        path: A checkpoint's folder.
        model: The model.
        optimizer: Its optimizer.
        about: What the run is.
        average: The average of the model's weights, if there is one.

    Returns:
        Steps done, and what was logged.

    Raises:
        ValueError: If the checkpoint is of another run, or damaged.
    """
    try:
        state = json.loads((path / _STATE).read_text(encoding="utf-8"))
        tensors = load_file(path / _TENSORS)
    except Exception as error:  # (safetensors raises errors of its own)
        raise ValueError(f"path must hold a checkpoint; the one at {path} is damaged: {error}. Delete it.") from error
    differing = sorted(name for name, value in about.items() if state["about"].get(name) != value)
    if differing:
        raise ValueError(
            f"path must be free, or of the same run; the one at {path} has other {', '.join(differing)}. Choose another path."
        )
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
            _, index, key = name.split(".", 2)
            like = parameters[int(index)] if tensor.ndim else None  # the number of steps is a number
            own["state"].setdefault(int(index), {})[key] = placed(tensor, like)
    optimizer.load_state_dict(own)
    _set_random_states({name.removeprefix("random."): t for name, t in tensors.items() if name.startswith("random.")})
    return int(state["step"]), list(state["history"])


def _random_states(device: torch.device) -> dict[str, Tensor]:
    """Of every rank; those after the first by their numbers."""
    own = {"cpu": torch.get_rng_state()}
    own |= {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {}
    if is_alone(None):
        return own
    found: dict[str, Tensor] = {}
    for name, state in own.items():
        states = [torch.empty_like(state, device=device) for _ in range(dist.get_world_size())]
        dist.all_gather(states, state.to(device))
        found |= {_of_rank(rank, name): each for rank, each in enumerate(states)}
    return found


def _of_rank(rank: int, name: str) -> str:
    return f"{rank}.{name}" if rank else name


def _set_random_states(states: dict[str, Tensor]) -> None:
    """This rank's; left as they are, of a rank that was not there."""
    cpu, cuda = (states.get(_of_rank(0 if is_alone(None) else dist.get_rank(), name)) for name in ("cpu", "cuda"))
    if cpu is not None:
        torch.set_rng_state(cpu)
    if cuda is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(cuda)
