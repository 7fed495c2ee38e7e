"""Sharded training (FSDP2): every rank holds a part of weights, gradients, optimizer and average.

Each block is gathered as it runs and freed again. ``fully_shard`` takes no parameters without dimensions, such as the
temperature; they are whole on every rank, and their gradients are averaged here. Accelerate's own FSDP2 plugin (1.15) does not
serve: on CPU ranks (gloo) it is ignored and DDP used, and it can leave out modules, but not CLIP's bare ``logit_scale``.
"""

import copy
import inspect
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn

from ..encoder import EncoderCore
from ._loss import Encoded
from ._student import Student


class Shards(nn.Module):
    """Encodes a batch with a copy of the first rank's student that is spread over all ranks; averages it with decay ``ema``."""

    def __init__(self, student: EncoderCore, device: torch.device, *, hidden: bool, ema: float | None) -> None:
        super().__init__()
        fully_shard = _fully_shard()
        self._device = device
        twin = _twin(student)
        with torch.no_grad():
            for tensor in chain(twin.model.parameters(), twin.model.buffers()):
                there = tensor.detach().to(device)
                dist.broadcast(there, 0)  # as DDP does
                tensor.copy_(there)
        self._whole = [
            parameter for parameter in twin.model.parameters() if parameter.ndim == 0 or not parameter.numel()
        ]
        for parameter in self._whole:
            parameter.data = parameter.data.to(device)
        average = None if ema is None else AveragedModel(twin.model, device, avg_fn=get_ema_avg_fn(ema))
        arguments = {
            "mesh": dist.device_mesh.init_device_mesh(device.type, (dist.get_world_size(),)),
            "ignored_params": set(self._whole),
        }
        encodes = Student(twin, hidden=hidden)  # before blocks are of another type
        blocks = (block.module for tower in twin.towers.values() for block in tower.blocks)
        for block in dict.fromkeys(blocks):
            fully_shard(block, **arguments)
        self._root = fully_shard(_Root(encodes), **arguments)
        if average is not None:
            parts = {name: tensor.detach().clone() for name, tensor in twin.model.state_dict().items()}
            average.module.load_state_dict(parts, assign=True)
        self._of = [twin.model, average]  # registered already, or not to be

    @property
    def model(self) -> nn.Module:
        """The copy, whose parameters are this rank's parts."""
        model: nn.Module = self._of[0]
        return model

    @property
    def average(self) -> AveragedModel | None:
        """The average of its weights, in parts likewise."""
        average: AveragedModel | None = self._of[1]
        return average

    def forward(self, images: Tensor, tokens: Tensor) -> Encoded:
        """Encodes images ``[I, C, R, R]`` and captions ``[N, T]``."""
        return Encoded(*self._root(images, tokens))

    def average_gradients(self) -> None:
        """Mutates gradients of what is whole on every rank: averages them, as those of the parts are already."""
        found = [parameter.grad for parameter in self._whole if parameter.numel() and parameter.grad is not None]
        if found:
            mean = torch.stack(found)
            dist.all_reduce(mean)
            for gradient, value in zip(found, mean / dist.get_world_size(), strict=True):
                gradient.copy_(value)

    def clip_gradients(self, max_norm: float) -> None:
        """Mutates gradients: scales them down so that the norm of all parts together is at most ``max_norm``."""
        gradients: list[Any] = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
        parts = [each.to_local() for each in gradients if hasattr(each, "to_local")]
        rest = [each for each in gradients if not hasattr(each, "to_local")]
        squares = self._squares(parts)
        dist.all_reduce(squares)
        factor = max_norm / (float((squares + self._squares(rest)).sqrt()) + 1e-6)
        if factor < 1:
            for gradient in parts + rest:
                gradient.mul_(factor)

    def _squares(self, gradients: list[Tensor]) -> Tensor:
        """Sum of squares."""
        norms = [torch.linalg.vector_norm(gradient) for gradient in gradients]
        return torch.stack(norms).square().sum() if norms else torch.zeros((), device=self._device)

    @torch.no_grad()
    def put_back(self, student: EncoderCore) -> None:
        """Mutates the student, on every rank: its weights become the copy's, its buffers the first rank's; in eval mode."""
        for own, part in zip(student.model.parameters(), self.model.parameters(), strict=True):
            own.copy_(whole(part))
        for own, buffer in zip(student.model.buffers(), self.model.buffers(), strict=True):
            dist.broadcast(buffer, 0)
            own.copy_(buffer)
        student.model.eval()


class _Root(nn.Module):
    """The rest around the blocks. Returns a tuple, in which every version of ``fully_shard`` finds tensors."""

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.student = student

    def forward(self, images: Tensor, tokens: Tensor) -> tuple[Any, ...]:
        found: Encoded = self.student(images, tokens)
        outputs = (found.images, found.texts, found.logit_scale, found.logit_bias)
        # Hooks on views are lost when they are changed in place, which fully_shard warns of.
        return *(each.clone() if isinstance(each, Tensor) else each for each in outputs), found.hidden


def whole(tensor: Any) -> Tensor:
    """A tensor, or all its parts together; of a part, every rank must call it."""
    full: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full


def placed(tensor: Tensor, like: Any) -> Tensor:
    """This rank's part of a tensor if ``like`` is a part, else the tensor; every rank must call it."""
    if not hasattr(like, "full_tensor"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)


def _twin(student: EncoderCore) -> EncoderCore:
    """A copy whose blocks have the student's numbers."""
    twin = EncoderCore(copy.deepcopy(student.model))
    for name, tower in twin.towers.items():
        numbered = list(student.numbered[name])
        for number, block in zip(student.block_numbers(name), tower.blocks, strict=True):
            numbered[number] = block.module
        twin.numbered[name] = numbered
    return twin


def _fully_shard() -> Any:
    """PyTorch's ``fully_shard``, if it can leave parameters out."""
    try:
        from torch.distributed.fsdp import fully_shard
    except ImportError:
        known = False
    else:
        known = "ignored_params" in inspect.signature(fully_shard).parameters
    if not known:
        raise NotImplementedError(
            f"shard=True must have torch 2.7 or newer, whose fully_shard takes ignored_params; found {torch.__version__}. "
            "Update torch, or pass shard=False and save memory with chunks."
        )
    return fully_shard
