"""Layers of a student that are refitted, each with its like in the dense model."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ..encoder import EncoderCore, TowerName
from ..errors import WrongModelError
from ..scoring._walk import Walk
from ..surgery import noted_channels
from ._watch import Site

Linear = nn.Linear | nn.Conv2d


@dataclass(eq=False)
class Refit:
    """One layer of the student that is refitted, with its like in the dense model."""

    tower: TowerName
    block: int
    part: str  # "attention" or "mlp", with the name of an input projection after a dot
    layer: Linear
    original: Linear
    step: int  # in which the layer runs
    dense_step: int  # after which the dense stream is the target
    owner: nn.Module  # the dense model's block
    student_owner: nn.Module
    channels: Tensor | None = None  # output channels of the dense layer that the student has; None for all
    site: Site | None = field(default=None)  # of the stream after the layer; None if its own output is the target

    @property
    def name(self) -> str:
        """For reports."""
        return f"{self.tower} layer {self.block} {self.part}"


def groups_of(student: Walk, dense: Walk, alone: dict[str, str], *, inputs: bool) -> list[list[Refit]]:
    """The layers of a tower in the order in which they run, grouped; those that cannot be refitted go to ``alone``."""
    groups: list[list[Refit]] = []
    for block, number in enumerate(matched_blocks(student, dense)):
        own, other = student.blocks[block], dense.blocks[number]
        for part, kind, units, like in (
            ("attention", "head", own.attention, other.attention),
            ("mlp", "neurons", own.feed_forward, other.feed_forward),
        ):
            if units is None:
                continue
            if (
                like is None
                or type(units.output) is not type(like.output)
                or units.channels > like.channels
                or len(units.output.weight) > len(like.output.weight)
            ):
                raise _wrong(student, f"layer {number} whose {part} is not of the kind or size of the student's")
            sources = list(zip(units.sources, like.sources, strict=True))
            layers: list[list[tuple[str, Any, Any]]] = [[(part, units.output, like.output)]]
            if inputs and units.channels:
                layers.insert(0, [(f"{part}.{_name(own.module, source)}", source, its) for source, its in sources])
            where: dict[str, Any] = {
                "step": student.step_of(block, kind), "dense_step": dense.step_of(number, kind),
                "owner": other.module, "student_owner": own.module,
            }  # fmt: skip
            for together in layers:
                group = []
                for name, layer, original in together:
                    refit = Refit(student.tower, block, name, layer, original, **where)
                    reason = _hindrance(refit, sources if layer is units.output else [])
                    if reason is None:
                        group.append(refit)
                    else:
                        alone[refit.name] = reason
                if group:
                    groups.append(group)
    if not groups:
        raise _wrong(student, f"no layer to refit: {alone}")
    # What a layer around others does in the step of one of them, it does before that one.
    return sorted(groups, key=lambda group: (group[0].step, -sum(1 for _ in group[0].student_owner.modules())))


def _hindrance(refit: Refit, sources: Sequence[tuple[Any, Any]]) -> str | None:
    """Why a layer cannot be refitted, if so; else its channels are found."""
    if isinstance(refit.layer, nn.Conv2d) and refit.layer.groups > 1:
        return "it is a grouped convolution"
    try:
        refit.channels = kept_channels(refit.layer, refit.original, sources)
    except LookupError:
        return "it is not noted which of its output channels are left"
    return None


def matched_blocks(student: Walk, dense: Walk) -> list[int]:
    """For each block of the student, the position of the same block in the dense model."""
    count, whole = len(student.blocks), len(dense.blocks)
    numbers = student.encoder.block_numbers(student.tower)
    if count == whole:
        return list(range(count))
    if len(student.encoder.numbered[student.tower]) == whole:
        return numbers
    found = _by_weights([b.module for b in student.blocks], [b.module for b in dense.blocks])
    if count > whole or found is None:
        raise _wrong(student, f"{whole} layers, of which the student's {count} cannot be told")
    return found


def _by_weights(own: Sequence[nn.Module], others: Sequence[nn.Module]) -> list[int] | None:
    """Positions by equal tensors, which pruning leaves in norms and biases; None if they do not tell."""
    states = [dict(other.named_parameters()) for other in others]
    found = []
    for module in own:
        mine = dict(module.named_parameters())
        equal = [sum(name in state and torch.equal(p.cpu(), state[name].cpu()) for name, p in mine.items()
                     if name in state and p.shape == state[name].shape) for state in states]  # fmt: skip
        best = max(equal)
        if not best or equal.count(best) > 1:
            return None
        found.append(equal.index(best))
    return found if all(a < b for a, b in pairwise(found)) else None


def kept_channels(layer: Any, original: Any, sources: Sequence[tuple[Any, Any]] = ()) -> Tensor | None:
    """Output channels of the dense layer that the student's has; None for all. ``sources`` make the layer's input."""
    count, whole = layer.weight.shape[0], original.weight.shape[0]
    if count == whole:
        return None
    own, other = noted_channels(layer, "out"), noted_channels(original, "out")
    if own is None and getattr(layer, "heads", None) is not None:  # a projection that notes its heads
        dim, before = layer.head_dim, original.heads.tolist()
        own = [before.index(head) * dim + c for head in layer.heads.tolist() for c in range(dim)]
        other = None
    if own is None:  # where pruners took no notes, equal weights tell
        weight, entering = original.weight, kept_channels(*sources[0]) if sources else None
        if entering is not None:
            weight = weight[:, entering.to(weight.device)]
        return _equal_rows(layer.weight, weight)
    places = own if other is None else [other.index(channel) for channel in own]
    return torch.tensor(places, device=layer.weight.device)


def _equal_rows(own: Tensor, other: Tensor) -> Tensor:
    """The row of another weight that each row of a weight equals; raises LookupError if one equals none, or several."""
    if own.shape[1:] != other.shape[1:]:
        raise LookupError("of other inputs")
    equal = (own.flatten(1)[:, None] == other.to(own.device).flatten(1)[None]).all(-1)
    if not equal.sum(1).eq(1).all():
        raise LookupError("no equal rows")
    return equal.long().argmax(1)


def _name(owner: nn.Module, module: nn.Module) -> str:
    name: str = next(name for name, other in owner.named_modules() if other is module)
    return name.rpartition(".")[2]


def _wrong(student: Walk, found: str) -> WrongModelError:
    return WrongModelError(
        f"dense must be the model that encoder was pruned from, before; found in its {student.tower} tower {found}. Wrap the "
        "model before layers are removed, prune with encoder.pruner_arguments(...), and pass a copy made before that."
    )


def check_models(encoder: EncoderCore, dense: EncoderCore) -> None:
    """Raises unless one model can have been pruned from the other."""
    own = {parameter.data_ptr() for parameter in encoder.model.parameters() if parameter.numel()}
    if encoder is dense or any(
        parameter.data_ptr() in own for parameter in dense.model.parameters() if parameter.numel()
    ):
        raise ValueError(
            "dense must be another model than encoder, with weights of its own; found shared weights. Copy the model before "
            "pruning: dense = mope.DualEncoder(copy.deepcopy(encoder.model))."
        )
    if type(encoder.model) is not type(dense.model):
        raise WrongModelError(
            f"dense must be the model that encoder was pruned from; found a {type(dense.model).__name__} for a "
            f"{type(encoder.model).__name__}."
        )
