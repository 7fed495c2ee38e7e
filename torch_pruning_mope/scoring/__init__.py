"""Scoring: units, rewiring, the exact ablation engine and the plain loop, the score table."""

from .._fingerprint import fingerprint
from ..towers import Unit
from ._ablate import Ablator
from ._cost import ScoringCost, estimate_cost
from ._engine import PlainEngine, PrefixEngine
from ._families import Interaction
from ._gradients import GradientsMixin, accumulate_gradients, batch_losses
from ._greedy import greedy_path
from ._guidance import Separation, calibration_guidance, separation
from ._journal import Loss
from ._meter import Meter, PairsLike
from ._ranks import Ranks
from ._rewire import Rewiring, neuron_orders
from ._score import Autocast, score
from ._table import Score, ScoreTable
from ._units import Ablation, check_common, enumerate_units, nested_ablations, single_ablation

__all__ = [
    "Ablation",
    "Ablator",
    "Autocast",
    "GradientsMixin",
    "Interaction",
    "Loss",
    "Meter",
    "PairsLike",
    "PlainEngine",
    "PrefixEngine",
    "Ranks",
    "Rewiring",
    "Score",
    "ScoreTable",
    "ScoringCost",
    "Separation",
    "Unit",
    "accumulate_gradients",
    "batch_losses",
    "calibration_guidance",
    "check_common",
    "enumerate_units",
    "estimate_cost",
    "fingerprint",
    "greedy_path",
    "nested_ablations",
    "neuron_orders",
    "score",
    "separation",
    "single_ablation",
]
