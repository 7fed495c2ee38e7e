"""Importances for Torch-Pruning: MoPE, and MoPE weighed with Torch-Pruning's own criteria.

Both score heads and FFN neurons over *all* layers at once and return numbers that are strictly ordered, with the best units
of each layer above all others, so that Torch-Pruning removes exactly the count it is asked for: it cuts all ties of a
threshold together, and silently spares a layer whose units all fall under it (trap X).
"""

from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import torch
import torch_pruning as tp
from jaxtyping import Float
from torch import Tensor, nn

from ._request import Layer
from .data import Pairs
from .encoder import DualEncoder
from .errors import MissingGradientsError, NonFiniteError, WrongModelError
from .metrics import MetricLike
from .scoring import Interaction, PairsLike, Rewiring, ScoreTable
from .scoring import score as score_units

_Key = tuple[str, str, int]
"""``head`` or ``neurons``, tower, layer."""
_GRADIENT_CRITERIA = (tp.importance.GroupTaylorImportance, tp.importance.GroupHessianImportance)


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
        self._channels: dict[_Key, Tensor] = {}

    @abstractmethod
    def _raw(self, graph: tp.DependencyGraph) -> dict[_Key, Float[Tensor, "U"]]:
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
            signature = _signature(self.encoder.model)
            if signature != self._signature:
                self._channels = self._ordered(self._raw(graph))
                self._signature = signature
        if key not in self._channels:
            if self.fallback is None:
                return None
            result: Tensor | None = _criterion(self.fallback, group)
            return None if result is None else _strictly_increasing(result.double().cpu())
        return self._channels[key][torch.tensor(group[0].idxs)]

    def _key(self, group: Any, graph: tp.DependencyGraph) -> _Key | None:
        """Which sub-layer's units a group removes, if any: the one whose output linear loses input channels."""
        outputs = {output: key for key, _, output in _sublayers(self.encoder)}
        for dep, _ in group:
            if dep.target.module in outputs and graph.is_in_channel_pruning_fn(dep.handler):
                return outputs[dep.target.module]
        return None

    def _ordered(self, raw: Mapping[_Key, Tensor]) -> dict[_Key, Float[Tensor, "C"]]:
        """Strictly ordered over all layers of a kind, the best of each layer on top, repeated over a unit's channels."""
        for key, values in raw.items():
            if not torch.isfinite(values).all():
                raise NonFiniteError(f"scores must be finite; found NaN or infinity in {' '.join(map(str, key))}.")
        sizes = {key: sublayer.unit_size for key, sublayer, _ in _sublayers(self.encoder)}
        channels: dict[_Key, Tensor] = {}
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


class MoPEImportance(UnitImportance):
    """Module-wise Pruning Error as a Torch-Pruning importance (Lin et al., CVPR 2024, arXiv 2403.07839).

    The model is scored when a pruner first asks, and again whenever its weights have changed since, so iterative pruning
    re-scores between steps. Groups that MoPE does not score go to ``fallback``.

    Args:
        encoder: The dual encoder that the pruner prunes.
        pairs: Calibration pairs, or any iterable of ``(images, tokens)`` batches; read once, at construction.
        table: A score table of the model's weights, instead of or besides ``pairs``.
        metric: Z; see :func:`torch_pruning_mope.score`, as for the following.
        kinds: ``head``, ``neurons`` or both; what is not scored goes to ``fallback``.
        groups: Neuron groups per MLP.
        interaction: ``single``, ``nested`` or ``greedy``.
        rewire: How neurons are ordered before they are grouped.
        engine: ``prefix`` or ``plain``.
        batch_size: Sequences run at once.
        progress: Whether to show a progress bar.
        fallback: See :class:`UnitImportance`, as for the following.
        min_heads: Heads that every layer keeps.
        min_neurons: Neurons that every layer keeps.

    Raises:
        ValueError: If there are neither pairs nor a table.
        WrongModelError: If the table is of other weights.
    """

    def __init__(
        self,
        encoder: DualEncoder,
        pairs: PairsLike | None = None,
        *,
        table: ScoreTable | None = None,
        metric: MetricLike = "recall_mean",
        kinds: Collection[str] = ("head", "neurons"),
        groups: int = 16,
        interaction: Interaction = "nested",
        rewire: Rewiring = "taylor",
        engine: Literal["prefix", "plain"] = "prefix",
        batch_size: int = 128,
        progress: bool = True,
        fallback: Any = None,
        min_heads: int = 1,
        min_neurons: int = 2,
    ) -> None:
        super().__init__(encoder, fallback=fallback, min_heads=min_heads, min_neurons=min_neurons)
        if pairs is None and table is None:
            raise ValueError("pairs must be given, or a table; found neither. Pass calibration pairs.")
        self.pairs = None if pairs is None else Pairs.coerce(pairs)
        self._arguments: dict[str, Any] = {
            "metric": metric,
            "kinds": kinds,
            "groups": groups,
            "interaction": interaction,
            "rewire": rewire,
            "engine": engine,
            "batch_size": batch_size,
            "progress": progress,
        }
        self._table: ScoreTable | None = None
        self._table_signature: object = None
        if table is not None:
            table.check_weights(encoder.model)
            self._table, self._table_signature = table, _weights_signature(encoder.model)

    @property
    def table(self) -> ScoreTable:
        """The score table of the model as it is now; scores it if need be.

        Raises:
            WrongModelError: If the model has changed since the table was made, and there are no pairs to score it on.
        """
        signature = _weights_signature(self.encoder.model)
        if self._table is None or signature != self._table_signature:
            if self.pairs is None:
                raise WrongModelError(
                    "table must be of the model as it is now; found one from before its weights changed. Pass pairs as well, "
                    "so that the model can be scored again."
                )
            self._table = score_units(self.encoder, self.pairs, **self._arguments)
            self._table_signature = signature
        return self._table

    def _raw(self, graph: tp.DependencyGraph) -> dict[_Key, Float[Tensor, "U"]]:  # noqa: ARG002
        channels: dict[_Key, Tensor] = {}
        sublayers = {key: sublayer for key, sublayer, _ in _sublayers(self.encoder)}
        for kind in ("head", "neurons"):
            scores = self.table.of(kind)
            # Neurons of a group tie, as do pooled units: the table's order decides, by less than scores show in print.
            step = 1e-9 * max((abs(score.value) for score in scores), default=0.0) or 1e-12
            for position, score in enumerate(scores):
                key = (kind, score.unit.tower, score.unit.layer)
                own = channels.setdefault(
                    key, torch.full((sublayers[key].output.in_features,), torch.nan, dtype=torch.double)
                )
                owned = torch.tensor(score.unit.channels)
                within = torch.linspace(0, 1, len(owned) + 1, dtype=torch.double)[:-1] * (kind == "neurons")
                own[owned] = score.value + step * (position + within) / len(scores)
        return {key: own.view(-1, sublayers[key].unit_size)[:, 0] for key, own in channels.items()}


class WeightedImportance(UnitImportance):
    """A weighted sum of criteria, each divided by its mean magnitude over all layers of a kind.

    With a single criterion it keeps that criterion's order, but strictly, and with the counts exact under global pruning.

    Args:
        encoder: The dual encoder that the pruner prunes.
        criteria: Pairs of an importance (MoPE's or Torch-Pruning's) and its weight.
        fallback: See :class:`UnitImportance`, as for the following.
        min_heads: Heads that every layer keeps.
        min_neurons: Neurons that every layer keeps.

    Raises:
        ValueError: If there are no criteria, a weight is not positive, or criteria want different gradients in ``.grad``.
    """

    def __init__(
        self,
        encoder: DualEncoder,
        criteria: Sequence[tuple[Any, float]],
        *,
        fallback: Any = None,
        min_heads: int = 1,
        min_neurons: int = 2,
    ) -> None:
        super().__init__(encoder, fallback=fallback, min_heads=min_heads, min_neurons=min_neurons)
        if not criteria or any(not callable(criterion) or weight <= 0 for criterion, weight in criteria):
            raise ValueError(
                "criteria must be a non-empty sequence of (importance, positive weight); found "
                f"{[(type(criterion).__name__, weight) for criterion, weight in criteria]}."
            )
        wanted = {kind for kind in _GRADIENT_CRITERIA for criterion, _ in criteria if isinstance(criterion, kind)}
        if len(wanted) > 1:
            raise ValueError(
                "criteria must not mix Taylor, which reads mean gradients from .grad, and Hessian, which reads squared ones; "
                "found both. Use one of them."
            )
        self.criteria = tuple(criteria)

    def _raw(self, graph: tp.DependencyGraph) -> dict[_Key, Float[Tensor, "U"]]:
        total: dict[_Key, Tensor] = {}
        for criterion, weight in self.criteria:
            parts = criterion._raw(graph) if isinstance(criterion, UnitImportance) else self._stock(criterion, graph)
            for kind in ("head", "neurons"):
                keys = [key for key in parts if key[0] == kind]
                scale = torch.cat([parts[key].double() for key in keys]).abs().mean() if keys else torch.ones(())
                for key in keys:
                    scaled = weight * parts[key].double() / (scale if scale > 0 else 1.0)
                    total[key] = total[key] + scaled if key in total else scaled
        return total

    def _stock(self, criterion: Any, graph: tp.DependencyGraph) -> dict[_Key, Tensor]:
        """A Torch-Pruning criterion on every layer's heads (mean over channels, as Torch-Pruning does) and neurons."""
        raw: dict[_Key, Tensor] = {}
        for key, sublayer, output in _sublayers(self.encoder):
            group = graph.get_pruning_group(output, tp.prune_linear_in_channels, list(range(output.in_features)))
            values = _criterion(criterion, group)
            if values is None:
                raise ValueError(f"criteria must score every head and neuron; {type(criterion).__name__} skips {key}.")
            raw[key] = values.detach().cpu().view(-1, sublayer.unit_size).mean(1)
        return raw


def _sublayers(encoder: DualEncoder) -> list[tuple[_Key, Any, nn.Linear]]:
    """Every sub-layer with its key and output linear."""

    def of(layer: Layer) -> list[tuple[_Key, Any, nn.Linear]]:
        attention, feed_forward = layer.block.attention, layer.block.feed_forward
        return [
            (("head", layer.tower, layer.index), attention, attention.output),
            (("neurons", layer.tower, layer.index), feed_forward, feed_forward.output),
        ]

    return [entry for layer in encoder.layers for entry in of(layer)]


def _criterion(criterion: Any, group: Any) -> Tensor | None:
    """Calls a Torch-Pruning criterion, which reads ``.grad`` without looking (trap W).

    Returns:
        What it returns.

    Raises:
        MissingGradientsError: If a gradient that it reads is missing.
    """
    if isinstance(criterion, _GRADIENT_CRITERIA) and not getattr(criterion, "_accu_grad", None):
        layers = [dep.target.module for dep, _ in group if isinstance(dep.target.module, nn.Linear | nn.Conv2d)]
        if any(parameter.grad is None for layer in layers for parameter in layer.parameters()):
            squared = isinstance(criterion, tp.importance.GroupHessianImportance)
            raise MissingGradientsError(
                f"{type(criterion).__name__} needs gradients in .grad; found None. Call encoder.accumulate_gradients(pairs"
                f"{', squared=True' if squared else ''}) before pruner.step()."
            )
    result: Tensor | None = criterion(group)
    return result


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


def _weights_signature(model: nn.Module) -> object:
    """Changes whenever a parameter is replaced or written to in place; cheap."""
    return tuple((id(p), p._version, tuple(p.shape)) for p in model.parameters())


def _signature(model: nn.Module) -> object:
    """Changes with the weights or with the gradients."""
    gradients = tuple(None if p.grad is None else (id(p.grad), p.grad._version) for p in model.parameters())
    return (_weights_signature(model), gradients)
