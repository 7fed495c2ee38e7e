"""Module-wise Pruning Error as an importance."""

from collections.abc import Collection
from typing import Any, Literal

import torch
import torch_pruning as tp
from jaxtyping import Float
from torch import Tensor

from .._fingerprint import fingerprint
from ..data import Pairs
from ..encoder import EncoderCore
from ..errors import WrongModelError
from ..metrics import MetricLike
from ..scoring import Autocast, Interaction, PairsLike, Rewiring, ScoreTable
from ..scoring import score as score_units
from ._unit import Key, UnitImportance, unit_sublayers


class MoPEImportance(UnitImportance):
    """Module-wise Pruning Error as a Torch-Pruning importance (Lin et al., CVPR 2024, arXiv 2403.07839).

    The model is scored when a pruner first asks, and again whenever its weights have changed since, so iterative pruning
    re-scores between steps. Groups that MoPE does not score go to ``fallback``.

    Args:
        encoder: The dual encoder that the pruner prunes.
        pairs: Calibration pairs, or any iterable of ``(images, tokens)`` batches; read once, at construction.
        table: A score table of the model's weights, instead of or besides ``pairs``.
        metric: Z; see :func:`torch_pruning_mope.score`.
        kinds: ``head``, ``neurons`` or both; what is not scored goes to ``fallback``.
        groups: Neuron groups per MLP.
        interaction: ``single``, ``nested``, ``greedy`` or ``joint``.
        rewire: How neurons are ordered before they are grouped.
        reconstruct: Whether to score units as they are missed once the others are refitted; see :func:`score`. For pruning
            that :func:`torch_pruning_mope.reconstruct` follows.
        engine: ``prefix`` or ``plain``.
        batch_size: Sequences run at once.
        memory: What scoring may use besides the model and the pairs.
        autocast: Compute in this type.
        progress: Whether to show a progress bar.
        fallback: Torch-Pruning importance of all other groups; None leaves them alone.
        min_heads: Heads that every layer keeps.
        min_neurons: Neurons that every layer keeps.

    Raises:
        ValueError: If there are neither pairs nor a table.
        WrongModelError: If the table is of other weights.
    """

    def __init__(
        self,
        encoder: EncoderCore,
        pairs: PairsLike | None = None,
        *,
        table: ScoreTable | None = None,
        metric: MetricLike = "contrastive_loss",
        kinds: Collection[str] = ("head", "neurons"),
        groups: int = 16,
        interaction: Interaction = "nested",
        rewire: Rewiring = "taylor",
        reconstruct: bool = False,
        engine: Literal["prefix", "plain"] = "prefix",
        batch_size: int | None = None,
        memory: int | str | None = None,
        autocast: Autocast | None = None,
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
            "reconstruct": reconstruct,
            "engine": engine,
            "batch_size": batch_size,
            "memory": memory,
            "autocast": autocast,
            "progress": progress,
        }
        self._table = table
        if table is not None:
            table.check_weights(encoder.model)

    @property
    def table(self) -> ScoreTable:
        """The score table of the model as it is now; scores it if need be.

        Raises:
            WrongModelError: If the model has changed since the table was made, and there are no pairs to score it on.
        """
        if self._table is None or self._table.weights != fingerprint(self.encoder.model):
            if self.pairs is None:
                raise WrongModelError(
                    "table must be of the model as it is now; found one from before its weights changed. Pass pairs as well, "
                    "so that the model can be scored again."
                )
            self._table = score_units(self.encoder, self.pairs, **self._arguments)
        return self._table

    def _raw(self, graph: tp.DependencyGraph) -> dict[Key, Float[Tensor, "U"]]:  # noqa: ARG002
        channels: dict[Key, Tensor] = {}
        sublayers = {key: sublayer for key, sublayer, _ in unit_sublayers(self.encoder)}
        table = self.table
        for kind in ("head", "neurons"):
            scores = table.of(kind)
            # Neurons of a group tie, as do pooled units: the table's order decides, by less than scores show in print.
            step = 1e-9 * max((abs(score.value) for score in scores), default=0.0) or 1e-12
            # On a joint path, a head of one tower may lose less than one of the other and still go later, being smaller.
            joint = table.settings.get("interaction") == "joint"
            for position, score in enumerate(scores):
                key = (kind, score.unit.tower, score.unit.layer)
                own = channels.setdefault(key, torch.full((sublayers[key].channels,), torch.nan, dtype=torch.double))
                owned = torch.tensor(score.unit.channels)
                within = torch.linspace(0, 1, len(owned) + 1, dtype=torch.double)[:-1] * (kind == "neurons")
                value = position if joint else score.value
                own[owned] = value + (1e-3 if joint else step) * (position + within) / len(scores)
        return {key: own.view(-1, sublayers[key].unit_size)[:, 0] for key, own in channels.items()}
