"""What all importances here share: which units a group removes, and an order in which no two units tie."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
import torch_pruning as tp
from jaxtyping import Float
from torch import Tensor, nn

from .._fingerprint import checksum
from ..encoder import DualEncoder
from ..errors import NonFiniteError, WrongModelError
from ..towers import Prunable
from ._stock import call_criterion

Key = tuple[str, str, int]
"""``head`` or ``neurons``, tower, layer."""


class UnitImportance(tp.importance.Importance):  # type: ignore[misc]
    """An importance that knows a dual encoder's heads and neurons; subclasses say what each is worth.

    Args:
        encoder: The dual encoder that the pruner prunes.
        fallback: A Torch-Pruning importance for all other groups (residual width, convolutions); None leaves them alone.
        min_heads: Heads that every layer keeps, whatever the threshold.
        min_neurons: Neurons that every layer keeps; give it the pruner's ``round_to`` if there is one. Not 1 by default,
            because Torch-Pruning no longer counts a layer of one channel, and the next iterative step then removes too few.

    Raises:
        TypeError: If ``encoder`` is not a :class:`DualEncoder`, or ``fallback`` is not callable.
        ValueError: If a minimum is below 1.
    """

    def __init__(self, encoder: DualEncoder, *, fallback: Any = None, min_heads: int = 1, min_neurons: int = 2) -> None:
        if not isinstance(encoder, DualEncoder):
            raise TypeError(
                f"encoder must be a DualEncoder; found {type(encoder).__name__}. Wrap the model: DualEncoder(model)."
            )
        if fallback is not None and not callable(fallback):
            raise TypeError(f"fallback must be a Torch-Pruning importance; found {type(fallback).__name__}.")
        if min(min_heads, min_neurons) < 1:
            raise ValueError(f"min_heads and min_neurons must be at least 1; found {min_heads} and {min_neurons}.")
        self.encoder = encoder
        self.fallback = fallback
        self.minimum = {"head": min_heads, "neurons": min_neurons}
        self._signature: object = None
        self._seen: object = None
        self._asked: set[Key] = set()
        self._channels: dict[Key, Tensor] = {}

    @abstractmethod
    def _raw(self, graph: tp.DependencyGraph) -> dict[Key, Float[Tensor, "U"]]:
        """A number per head or neuron of the layers that are scored, of the model as it is now."""

    def __call__(self, group: Any) -> Float[Tensor, "C"] | None:
        """What Torch-Pruning calls on every group.

        Args:
            group: A pruning group of the encoder's model.

        Returns:
            A number per channel of ``group[0]``, or None for a group to leave alone.

        Raises:
            WrongModelError: If the group belongs to another model.
        """
        graph = group._DG
        if graph.model is not self.encoder.model:
            raise WrongModelError(
                "importance must be built for the model that the pruner prunes; found another. Build it from a DualEncoder "
                "of that model."
            )
        key = self._key(group, graph)
        if key is not None:
            self._refresh(key, graph)
        if key not in self._channels:
            if self.fallback is None:
                return None
            result: Tensor | None = call_criterion(self.fallback, group)
            return None if result is None else _strictly_increasing(result.double().cpu())
        return self._channels[key][torch.tensor(group[0].idxs)]

    def _refresh(self, key: Key, graph: tp.DependencyGraph) -> None:
        """Scores anew if the weights or gradients have changed; looks at their contents once in a pass over the groups."""
        model = self.encoder.model
        versions = _versions(model)
        if versions == self._seen and key not in self._asked:
            self._asked.add(key)
            return
        signature = (weights_signature(model), _gradients(model))
        if signature != self._signature:
            self._channels = self._ordered(self._raw(graph))
            self._signature = signature
        self._seen, self._asked = versions, {key}

    def _key(self, group: Any, graph: tp.DependencyGraph) -> Key | None:
        """Which sub-layer's units a group removes, if any: the one whose output linear loses input channels."""
        outputs = {output: key for key, _, output in unit_sublayers(self.encoder)}
        for dep, _ in group:
            if dep.target.module in outputs and graph.is_in_channel_pruning_fn(dep.handler):
                return outputs[dep.target.module]
        return None

    def _ordered(self, raw: Mapping[Key, Tensor]) -> dict[Key, Float[Tensor, "C"]]:
        """Strictly ordered over all layers of a kind, the best of each layer on top, repeated over a unit's channels."""
        for key, values in raw.items():
            if not torch.isfinite(values).all():
                raise NonFiniteError(f"scores must be finite; found NaN or infinity in {' '.join(map(str, key))}.")
        sizes = {key: sublayer.unit_size for key, sublayer, _ in unit_sublayers(self.encoder)}
        channels: dict[Key, Tensor] = {}
        for kind in ("head", "neurons"):
            keys = [key for key in raw if key[0] == kind]
            if not keys:
                continue
            lengths = [len(raw[key]) for key in keys]
            values = torch.cat([raw[key].double().cpu() for key in keys])
            spared = torch.cat([_best(raw[key], self.minimum[kind]) for key in keys])
            values[spared] += 2 * (values.max() - values.min()) + 1
            ordered = _strictly_increasing(values).split(lengths)
            channels |= {key: part.repeat_interleave(sizes[key]) for key, part in zip(keys, ordered, strict=True)}
        return channels


def unit_sublayers(encoder: DualEncoder) -> list[tuple[Key, Prunable, nn.Module]]:
    """Everything that has heads or neurons, with its key and the layer that takes them."""
    return [
        ((kind, layer.tower, layer.index), units, units.output)
        for layer in encoder.layers
        for kind, units in (("head", layer.block.attention), ("neurons", layer.block.feed_forward))
        if units is not None and units.channels
    ]


def _best(values: Tensor, count: int) -> Tensor:
    """Mask of the ``count`` best."""
    mask = torch.zeros(len(values), dtype=torch.bool)
    mask[values.argsort(stable=True)[-count:]] = True
    return mask


def _strictly_increasing(values: Float[Tensor, "U"]) -> Float[Tensor, "U"]:
    """The same order without ties: a tie goes to the earlier entry, by a billionth of the range."""
    ordered, order = values.sort(stable=True)
    step = 1e-9 * max(float(ordered[-1] - ordered[0]), float(ordered.abs().max()), 1e-30)
    ramp = step * torch.arange(len(values), dtype=values.dtype)
    # v_i >= v_(i-1) + step for all i, and v_i >= value_i: a running maximum of value_i - i * step, with the ramp put back.
    strict = (ordered - ramp).cummax(0).values + ramp
    return torch.empty_like(values).scatter_(0, order, strict)


def weights_signature(model: nn.Module) -> object:
    """Changes whenever a parameter is replaced or written to, through ``.data`` too."""
    return tuple((id(p), tuple(p.shape), checksum(p)) for p in model.parameters())


def _versions(model: nn.Module) -> object:
    """Changes whenever a parameter or gradient is replaced or written to, but through ``.data``; cheap."""
    tensors = [tensor for p in model.parameters() for tensor in (p, p.grad) if tensor is not None]
    return tuple((id(tensor), tensor.data_ptr(), tensor._version, tuple(tensor.shape)) for tensor in tensors)


def _gradients(model: nn.Module) -> object:
    return tuple(None if p.grad is None else checksum(p.grad) for p in model.parameters())
