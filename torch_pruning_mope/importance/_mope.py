"""Module-wise Pruning Error as an importance."""

import inspect
from typing import Any

import torch
import torch_pruning as tp
from jaxtyping import Float
from torch import Tensor

from .._fingerprint import fingerprint
from ..data import Pairs
from ..encoder import EncoderCore
from ..errors import WrongModelError
from ..scoring import PairsLike, ScoreTable
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
        fallback: Torch-Pruning importance of all other groups; None leaves them alone.
        min_heads: Heads that every layer keeps.
        min_neurons: Neurons that every layer keeps.
        **scoring: Arguments of :func:`torch_pruning_mope.score`: ``metric``, ``kinds``, ``reconstruct`` and so on.

    Raises:
        TypeError: If :func:`score` takes no such arguments.
        ValueError: If there are neither pairs nor a table.
        WrongModelError: If the table is of other weights.
    """

    def __init__(
        self,
        encoder: EncoderCore,
        pairs: PairsLike | None = None,
        *,
        table: ScoreTable | None = None,
        fallback: Any = None,
        min_heads: int = 1,
        min_neurons: int = 2,
        **scoring: Any,
    ) -> None:
        super().__init__(encoder, fallback=fallback, min_heads=min_heads, min_neurons=min_neurons)
        if pairs is None and table is None:
            raise ValueError("pairs must be given, or a table; found neither. Pass calibration pairs.")
        self.pairs = None if pairs is None else Pairs.coerce(pairs)
        inspect.signature(score_units).bind(encoder, pairs, **scoring)
        self._arguments = scoring
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
