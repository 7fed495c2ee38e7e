"""Base of the importances: the units that a group removes, and an order in which no two units tie."""

import hashlib
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
import torch_pruning as tp
from jaxtyping import Float
from torch import Tensor, nn

from .._fingerprint import fingerprint
from ..encoder import EncoderCore
from ..errors import MissingGradientsError, NonFiniteError, WrongModelError
from ..pruning import round_to_of
from ..towers import Prunable

Key = tuple[str, str, int]
"""``head`` or ``neurons``, tower, layer."""
GRADIENT_CRITERIA = (tp.importance.GroupTaylorImportance, tp.importance.GroupHessianImportance)


class UnitImportance(tp.importance.Importance):  # type: ignore[misc]
    """An importance that knows a dual encoder's heads and neurons; subclasses give each a number."""

    def __init__(self, encoder: EncoderCore, *, fallback: Any = None, min_heads: int = 1, min_neurons: int = 2) -> None:
        if not isinstance(encoder, EncoderCore):
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
        self._content: object = None
        self._versions: object = None
        self._served: set[Key] = set()
        self._channels: dict[Key, Tensor] = {}

    @abstractmethod
    def _raw(self, graph: tp.DependencyGraph) -> dict[Key, Float[Tensor, "U"]]:
        """A number per head or neuron of the layers that are scored, of the model as it is now."""

    def __call__(self, group: Any) -> Float[Tensor, "C"] | None:
        """Called by Torch-Pruning on every group."""
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
        """Scores anew if weights or gradients have changed, or the pruner rounds otherwise."""
        # A step asks once for each group, so a second request begins a step: then contents are compared, which also shows
        # changes made through ``.data``.
        multiple = round_to_of(graph)
        versions = (multiple, tuple((id(p), p._version, id(p.grad)) for p in self.encoder.model.parameters()))
        if versions != self._versions or key in self._served:
            self._served.clear()
            content = (multiple, _content(self.encoder.model))
            if content != self._content:
                self._channels = self._ordered(self._raw(graph), multiple)
                self._content = content
            self._versions = versions
        self._served.add(key)

    def _key(self, group: Any, graph: tp.DependencyGraph) -> Key | None:
        """The sub-layer whose units a group removes: the one whose output layer loses input channels."""
        outputs = {output: key for key, _, output in unit_sublayers(self.encoder)}
        for dep, _ in group:
            if dep.target.module in outputs and graph.is_in_channel_pruning_fn(dep.handler):
                return outputs[dep.target.module]
        return None

    def _ordered(self, raw: Mapping[Key, Tensor], multiple: int) -> dict[Key, Float[Tensor, "C"]]:
        """Strictly ordered over all layers of a kind, the best of each layer on top, repeated over a unit's channels."""
        check_finite(raw)
        sizes = {key: sublayer.unit_size for key, sublayer, _ in unit_sublayers(self.encoder)}
        channels: dict[Key, Tensor] = {}
        for kind in ("head", "neurons"):
            # A threshold falls into one chunk at most, and rounding then removes no more than the rest of that.
            size = multiple if kind == "neurons" else 1
            least = -(-self.minimum[kind] // size) * size
            parts = {key: _in_chunks(values.double().cpu(), size) for key, values in raw.items() if key[0] == kind}
            if not parts:
                continue
            values = torch.cat(list(parts.values()))
            spared = torch.cat([_best(part, least) for part in parts.values()])
            values[spared] += 2 * (values.max() - values.min()) + 1
            ordered = _strictly_increasing(values).split([len(part) for part in parts.values()])
            channels |= {key: part.repeat_interleave(sizes[key]) for key, part in zip(parts, ordered, strict=True)}
        return channels


def check_finite(raw: Mapping[Key, Tensor]) -> None:
    """Raises if a score is NaN or infinite."""
    bad = [" ".join(map(str, key)) for key, values in raw.items() if not torch.isfinite(values).all()]
    if bad:
        raise NonFiniteError(f"scores must be finite; found NaN or infinity in {', '.join(bad)}.")


def _in_chunks(values: Float[Tensor, "U"], size: int) -> Float[Tensor, "U"]:
    """Each value replaced by the mean of its chunk: the best ``size``, the next best ``size``, and so on."""
    if size == 1:
        return values
    order = values.argsort(stable=True)
    chunks = values[order].flip(0).split(size)
    means = torch.cat([chunk.mean().expand(len(chunk)) for chunk in chunks]).flip(0)
    return torch.empty_like(values).scatter_(0, order, means)


def unit_sublayers(encoder: EncoderCore) -> list[tuple[Key, Prunable, nn.Module]]:
    """Everything that has heads or neurons, with its key and the layer that takes them."""
    return [((part, tower, i), units, units.output) for (tower, i, part), units in encoder.sublayers.items()]


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


def _content(model: nn.Module) -> str:
    """Hash of the weights and the gradients."""
    digest = hashlib.sha256(fingerprint(model).encode())
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            digest.update(name.encode())
            digest.update(parameter.grad.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def call_criterion(criterion: Any, group: Any) -> Tensor | None:
    """Calls a Torch-Pruning criterion, which reads ``.grad`` without looking."""
    if isinstance(criterion, GRADIENT_CRITERIA) and not getattr(criterion, "_accu_grad", None):
        layers = [dep.target.module for dep, _ in group if isinstance(dep.target.module, nn.Linear | nn.Conv2d)]
        if any(parameter.grad is None for layer in layers for parameter in layer.parameters()):
            squared = isinstance(criterion, tp.importance.GroupHessianImportance)
            raise MissingGradientsError(
                f"{type(criterion).__name__} needs gradients in .grad; found None. Call encoder.accumulate_gradients(pairs"
                f"{', squared=True' if squared else ''}) before pruner.step()."
            )
    result: Tensor | None = criterion(group)
    return result
