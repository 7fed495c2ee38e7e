"""Scoring: units, rewiring, the exact ablation engine and the plain loop, the score table."""

from .._ranks import Ranks
from ._ablate import Ablator
from ._cost import Cost, estimate_cost
from ._cut import Cut
from ._engine import PrefixEngine
from ._families import Interaction
from ._greedy import greedy_path
from ._guidance import Separation, calibration_guidance, separation
from ._joint import freed_parameters, joint_path
from ._journal import Journal
from ._loss import Loss
from ._meter import Meter, PairsLike
from ._plain import PlainEngine
from ._rewire import Rewiring, neuron_orders
from ._score import Autocast, score
from ._table import Score, ScoreTable, fingerprint
from ._units import Ablation, Kind, Unit, enumerate_units, nested_ablations, single_ablation

__all__ = [
    "Ablation",
    "Ablator",
    "Autocast",
    "Cost",
    "Cut",
    "Interaction",
    "Journal",
    "Kind",
    "Loss",
    "Meter",
    "PairsLike",
    "PlainEngine",
    "PrefixEngine",
    "Ranks",
    "Rewiring",
    "Score",
    "ScoreTable",
    "Separation",
    "Unit",
    "calibration_guidance",
    "enumerate_units",
    "estimate_cost",
    "fingerprint",
    "freed_parameters",
    "greedy_path",
    "joint_path",
    "nested_ablations",
    "neuron_orders",
    "score",
    "separation",
    "single_ablation",
]
