"""Scoring: units, rewiring, the exact ablation engine and the plain loop, the score table."""

from ._curves import nested_scores
from ._engine import dense_embeddings, prefix_ablations
from ._greedy import greedy_path
from ._meter import Loss, Meter, PairsLike
from ._plain import embeddings, masked, plain_ablations
from ._rewire import Rewiring, neuron_orders
from ._score import Interaction, score
from ._table import Score, ScoreTable, fingerprint
from ._units import Ablation, Kind, Unit, enumerate_units, nested_ablations, single_ablation

__all__ = [
    "Ablation",
    "Interaction",
    "Kind",
    "Loss",
    "Meter",
    "PairsLike",
    "Rewiring",
    "Score",
    "ScoreTable",
    "Unit",
    "dense_embeddings",
    "embeddings",
    "enumerate_units",
    "fingerprint",
    "greedy_path",
    "masked",
    "nested_ablations",
    "nested_scores",
    "neuron_orders",
    "plain_ablations",
    "prefix_ablations",
    "score",
    "single_ablation",
]
