"""Reconstruction the slow way: whole passes for every layer, and ``torch.linalg.lstsq`` on the stacked system."""

import copy
from typing import Any

import torch
from torch import Tensor

from torch_pruning_mope import DualEncoder, Pairs, remove_units
from torch_pruning_mope.reconstruction._layers import Refit, groups_of
from torch_pruning_mope.reconstruction._reconstruct import _find_sites, _retarget
from torch_pruning_mope.reconstruction._watch import Site, walk_of, watched
from torch_pruning_mope.scoring import Unit
from torch_pruning_mope.towers import first_tensor, patches, rows

from ..zoo import build, pairs_of


def pruned(name: str, count: int = 16, share: float = 0.5) -> tuple[DualEncoder, DualEncoder, Pairs]:
    """A family's model in double precision without the first units of every layer, the model before, and pairs."""
    dense = DualEncoder(build(name).double())
    pairs = pairs_of(dense, count)
    student = DualEncoder(copy.deepcopy(dense.model))
    cut(student, share)
    return student, dense, Pairs(pairs.images.double(), pairs.tokens)


def cut(encoder: DualEncoder, share: float = 0.5) -> None:
    """Removes the first units of every layer."""
    units = []
    for layer in encoder.layers:
        for kind, part in (("head", layer.block.attention), ("neurons", layer.block.feed_forward)):
            count = 0 if part is None else int(part.num_units * share)
            if count and part is not None:
                channels = tuple(range(count * part.unit_size))
                units.append(Unit(kind, layer.tower, layer.index, 0, channels))  # type: ignore[arg-type]
    remove_units(encoder, units)


@torch.no_grad()
def reconstruct_slowly(
    student: DualEncoder, dense: DualEncoder, pairs: Pairs, ridge: float, *, inputs: bool = False
) -> None:
    """Mutates the student as ``reconstruct(held_out=0.1, projection=False)`` should."""
    for name in ("image", "text"):
        data = pairs.images if name == "image" else pairs.tokens
        held = torch.arange(len(data)) % 10 == 1
        steps, whole = walk_of(student, name), walk_of(dense, name)
        groups = groups_of(steps, whole, {}, inputs=inputs)
        _find_sites([refit for group in groups for refit in group], dense, name, data[:2])
        _retarget(groups, steps, whole)
        for group in groups:
            changes = [_refit(student, dense, refit, data, held, ridge) for refit in group]
            for refit, weights in zip(group, changes, strict=True):
                if weights is not None:
                    _set(refit.layer, weights)


def _refit(
    student: DualEncoder, dense: DualEncoder, refit: Refit, data: Tensor, held: Tensor, ridge: float
) -> Tensor | None:
    """The weights of one layer, or None where they would do worse on held-out inputs."""
    parts = {}
    for which, inputs in (("fit", data[~held]), ("held", data[held])):
        h, own, mask = _run(student, refit, inputs, refit.layer, refit.student_owner)
        _, target, _ = _run(dense, refit, inputs, refit.original, refit.owner)
        target = target if refit.channels is None else target[:, refit.channels]
        scale = torch.ones(own.shape[1], dtype=own.dtype) if refit.site is None else refit.site.scale
        scale = scale if refit.site is None or refit.channels is None else scale[refit.channels]
        left = torch.cat([h, torch.ones(len(h), 1, dtype=h.dtype)], 1) if refit.layer.bias is not None else h
        parts[which] = left[mask], ((target - own) / scale)[mask], scale
    left, residual, scale = parts["fit"]
    width = refit.layer.weight[0].numel()
    penalty = (ridge * left[:, :width].square().sum(0).mean()).sqrt() if width else torch.zeros(())
    system = torch.cat([left, penalty * torch.eye(left.shape[1], dtype=left.dtype)])
    right = torch.cat([residual, torch.zeros(left.shape[1], residual.shape[1], dtype=left.dtype)])
    change = torch.linalg.lstsq(system, right, driver="gelsd").solution
    left, residual, scale = parts["held"]
    if ((left @ change - residual) * scale).norm() >= (residual * scale).norm():
        return None
    weight = refit.layer.weight.flatten(1).mT
    prior = weight if refit.layer.bias is None else torch.cat([weight, refit.layer.bias[None]])
    return prior + change


def _run(encoder: DualEncoder, refit: Refit, inputs: Tensor, layer: Any, owner: Any) -> tuple[Tensor, Tensor, Tensor]:
    """One whole pass: the layer's inputs, the stream after it, and which rows have a part in the embedding."""
    site, zeros, ends = refit.site, [], []
    parts = next(block for block in encoder.towers[refit.tower].blocks if block.module is owner)
    if site is not None and site.module is None and parts.is_in_parts and refit.part == "attention":
        names = {module: name for name, module in owner.named_modules()}
        site = Site(names[parts.feed_forward.norm], "input", False, site.scale)  # type: ignore[union-attr]
    modules = [layer] + ([] if site is None or site.module is None else [owner.get_submodule(site.module)])

    def probed(_module: Any, _args: Any, output: Tensor) -> Tensor:
        zeros.append(torch.zeros_like(output, requires_grad=True))
        return output + zeros[-1]

    with watched(modules) as seen, torch.enable_grad():
        handles = [
            layer.register_forward_hook(probed),
            owner.register_forward_hook(lambda *args: ends.append(first_tensor(args[-1]).detach())),
        ]
        embeddings = encoder.embed(refit.tower, inputs)
        weights = torch.linspace(1, 2, embeddings.numel()).view_as(embeddings)
        found = torch.autograd.grad((embeddings * weights).sum(), zeros, allow_unused=True)
        for handle in handles:
            handle.remove()
    outs = seen.outputs[layer]
    if site is None:
        after = torch.cat([rows(layer, out) for out in outs])
    else:
        after = rows(layer, site.value(seen, owner, ends[0], outs[0].shape))
    mask = torch.cat(
        [rows(layer, zero if g is None else g).ne(0).any(-1) for zero, g in zip(zeros, found, strict=True)]
    )
    return torch.cat([patches(layer, value) for value in seen.inputs[layer]]).detach(), after.detach(), mask


def _set(layer: Any, weights: Tensor) -> None:
    if layer.bias is not None:
        layer.bias.copy_(weights[-1])
        weights = weights[:-1]
    layer.weight.copy_(weights.mT.reshape(layer.weight.shape))
